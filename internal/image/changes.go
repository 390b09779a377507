package image

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/oci"
)

// maxChanges bounds the instructions of one --change list.
const maxChanges = 1000

// ApplyChanges changes a configuration as docker import and docker commit do
// for --change: each is one Dockerfile instruction out of CMD, ENTRYPOINT,
// ENV, EXPOSE, HEALTHCHECK, LABEL, MAINTAINER, ONBUILD, SHELL, STOPSIGNAL,
// USER, VOLUME and WORKDIR.
func ApplyChanges(c *oci.Image, changes []string) error {
	if len(changes) > maxChanges {
		return fmt.Errorf("change: more than %d instructions: %w", maxChanges, oci.ErrTooLarge)
	}
	for _, change := range changes {
		if err := applyChange(c, change); err != nil {
			return fmt.Errorf("change %.200q: %w: %w", change, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func applyChange(c *oci.Image, change string) error {
	tree, err := parser.Parse(strings.NewReader(change))
	if err != nil {
		return err
	}
	for _, node := range tree.AST.Children {
		ins, err := instructions.ParseInstruction(node)
		if err != nil {
			return err
		}
		if err := expand(ins, c.Config.Env); err != nil {
			return err
		}
		if err := applyInstruction(c, ins, node.Original); err != nil {
			return err
		}
	}
	return nil
}

// expand removes quotes and replaces variables, by what the configuration has
// in its environment.
func expand(ins any, env []string) error {
	lex := shell.NewLex('\\')
	vars := shell.EnvsFromSlice(env)
	if e, ok := ins.(*instructions.ExposeCommand); ok {
		var ports []string
		for _, p := range e.Ports {
			words, err := lex.ProcessWords(p, vars)
			if err != nil {
				return err
			}
			ports = append(ports, words...)
		}
		e.Ports = ports
		return nil
	}
	e, ok := ins.(instructions.SupportsSingleWordExpansion)
	if !ok {
		return nil
	}
	return e.Expand(func(word string) (string, error) {
		word, _, err := lex.ProcessWord(word, vars)
		return word, err
	})
}

func applyInstruction(c *oci.Image, ins any, original string) error {
	switch i := ins.(type) {
	case *instructions.CmdCommand:
		c.Config.Cmd = commandLine(&c.Config, i.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		c.Config.Entrypoint = commandLine(&c.Config, i.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		for _, kv := range i.Env {
			c.Config.Env = setEnv(c.Config.Env, kv.Key, kv.Value)
		}
	case *instructions.ExposeCommand:
		for _, spec := range i.Ports {
			ports, err := parsePorts(spec)
			if err != nil {
				return err
			}
			for _, p := range ports {
				add(&c.Config.ExposedPorts, p)
			}
		}
	case *instructions.HealthCheckCommand:
		c.Config.Healthcheck = i.Health
	case *instructions.LabelCommand:
		for _, kv := range i.Labels {
			if c.Config.Labels == nil {
				c.Config.Labels = map[string]string{}
			}
			c.Config.Labels[kv.Key] = kv.Value
		}
	case *instructions.MaintainerCommand:
		c.Author = i.Maintainer
	case *instructions.OnbuildCommand:
		c.Config.OnBuild = append(c.Config.OnBuild, i.Expression)
	case *instructions.ShellCommand:
		c.Config.Shell = i.Shell
	case *instructions.StopSignalCommand:
		c.Config.StopSignal = i.Signal
	case *instructions.UserCommand:
		c.Config.User = i.User
	case *instructions.VolumeCommand:
		for _, v := range i.Volumes {
			add(&c.Config.Volumes, v)
		}
	case *instructions.WorkdirCommand:
		dir := i.Path
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.Config.WorkingDir, dir)
		}
		c.Config.WorkingDir = path.Clean(dir)
	default:
		word, _, _ := strings.Cut(original, " ")
		return fmt.Errorf("%s is not a valid change command", word)
	}
	return nil
}

// parsePorts parses "80", "53/udp" and "8000-8010/tcp".
func parsePorts(spec string) ([]string, error) {
	numbers, proto, _ := strings.Cut(spec, "/")
	if proto = strings.ToLower(proto); proto == "" {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, fmt.Errorf("port %q: protocol is not tcp, udp or sctp", spec)
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", spec, err)
	}
	to, err := strconv.ParseUint(last, 10, 16)
	if err != nil || to < from {
		return nil, fmt.Errorf("port %q: not a range of ports", spec)
	}
	var ports []string
	for p := from; p <= to; p++ {
		ports = append(ports, fmt.Sprintf("%d/%s", p, proto))
	}
	return ports, nil
}

// commandLine is the arguments of CMD or ENTRYPOINT: with the shell before
// them in their shell form.
func commandLine(c *dockerspec.DockerOCIImageConfig, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	shell := c.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), strings.Join(line.CmdLine, " "))
}

// setEnv sets a variable where it is, or adds it.
func setEnv(env []string, key, value string) []string {
	for i, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); name == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

func add(set *map[string]struct{}, key string) {
	if *set == nil {
		*set = map[string]struct{}{}
	}
	(*set)[key] = struct{}{}
}
