package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/pkg/kvfile"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/client"
)

// newLife is start, stop, restart, kill, pause or unpause.
func (d *docker) newLife(verb, short string) *cobra.Command {
	var seconds int
	var signal string
	var attach, interactive bool
	cmd := &cobra.Command{Use: verb + " [OPTIONS] CONTAINER [CONTAINER...]", Short: short, Args: rangeArgs(1, -1)}
	f := cmd.Flags()
	switch verb {
	case "stop", "restart":
		f.IntVarP(&seconds, "timeout", "t", 0, "Seconds to wait before killing")
		f.IntVar(&seconds, "time", 0, "The same as --timeout")
		hide(f, "time")
		f.StringVarP(&signal, "signal", "s", "", "Signal to send")
	case "kill":
		f.StringVarP(&signal, "signal", "s", "", "Signal to send")
	case "start":
		f.BoolVarP(&attach, "attach", "a", false, "Attach to its streams")
		f.BoolVarP(&interactive, "interactive", "i", false, "Attach standard input")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if attach || interactive {
			return d.startAttached(cmd.Context(), args, interactive)
		}
		q := url.Values{}
		if f.Changed("timeout") || f.Changed("time") {
			q.Set("t", strconv.Itoa(seconds))
		}
		if signal != "" {
			q.Set("signal", signal)
		}
		var failed []string
		err := d.each(args, true, func(name string) error {
			err := d.call(cmd.Context(), "POST", pathOf("containers", name, verb), q, nil, nil)
			if err != nil {
				failed = append(failed, name)
			}
			return err
		})
		if verb == "start" && err != nil {
			fmt.Fprintln(d.io.err, "Error: failed to start containers:", strings.Join(failed, ", "))
		}
		return err
	}
	return cmd
}

// startAttached starts one container with its streams here.
func (d *docker) startAttached(ctx context.Context, args []string, stdin bool) error {
	if len(args) > 1 {
		return &usageError{"you cannot start and attach multiple containers at once"}
	}
	c, err := d.lookUp(ctx, args[0])
	if err != nil {
		return err
	}
	o := &dockerRun{}
	o.tty, o.interactive, o.sigProxy = c.Config.Tty, stdin && c.Config.OpenStdin, true
	return d.attached(ctx, o, c.ID)
}

func (d *docker) newWait() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Wait for containers to end, and print their exit codes", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.each(args, false, func(name string) error {
				var end struct{ StatusCode int }
				if err := d.call(cmd.Context(), "POST", pathOf("containers", name, "wait"), nil, nil, &end); err != nil {
					return err
				}
				_, err := fmt.Fprintln(d.io.out, end.StatusCode)
				return err
			})
		},
	}
}

func (d *docker) newRename() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Rename a container", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.call(cmd.Context(), "POST", pathOf("containers", args[0], "rename"), url.Values{"name": {args[1]}}, nil, nil)
		},
	}
}

func (d *docker) newRm() *cobra.Command {
	var force, volumes bool
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] CONTAINER [CONTAINER...]", Short: "Remove containers", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			if volumes {
				q.Set("v", "1")
			}
			return d.each(args, false, func(name string) error {
				if err := d.call(cmd.Context(), "DELETE", pathOf("containers", name), q, nil, nil); err != nil {
					return d.unlessGone(err, force)
				}
				_, err := fmt.Fprintln(d.io.out, name)
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove it also while it runs")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "Remove its anonymous volumes, too")
	return cmd
}

func (d *docker) newLogs() *cobra.Command {
	var follow, timestamps bool
	var tail, since, until string
	cmd := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER", Short: "Print what a container has written", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c struct{ Config struct{ Tty bool } }
			if err := d.call(cmd.Context(), "GET", pathOf("containers", args[0], "json"), nil, nil, &c); err != nil {
				return err
			}
			q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
			for name, on := range map[string]bool{"follow": follow, "timestamps": timestamps} {
				if on {
					q.Set(name, "1")
				}
			}
			if err := setTimes(q, since, until); err != nil {
				return err
			}
			_, body, err := d.ask(cmd.Context(), client.Request{Method: "GET", Path: pathOf("containers", args[0], "logs"), Query: q})
			if err != nil {
				return err
			}
			defer body.Close()
			if c.Config.Tty {
				_, err = copyAll(d.io.out, body)
				return err
			}
			return client.CopyFrames(body, d.io.out, d.io.err)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "Follow the output")
	f.BoolVarP(&timestamps, "timestamps", "t", false, "Show timestamps")
	f.StringVarP(&tail, "tail", "n", "all", "Lines to show from the end")
	f.StringVar(&since, "since", "", "Show what was written since a time, or a duration ago")
	f.StringVar(&until, "until", "", "Show what was written before a time, or a duration ago")
	return cmd
}

func (d *docker) newExec() *cobra.Command {
	var o struct {
		detach, interactive, tty, privileged bool
		env, envFiles                        []string
		user, workdir                        string
	}
	cmd := &cobra.Command{
		Use: "exec [OPTIONS] CONTAINER COMMAND [ARG...]", Short: "Run a command in a running container", Args: rangeArgs(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tty && !o.detach {
				if err := checkTerminal(d.io.in, o.interactive); err != nil {
					return err
				}
			}
			env, err := readEnv(o.env, o.envFiles)
			if err != nil {
				return err
			}
			body := map[string]any{
				"AttachStdin": o.interactive && !o.detach, "AttachStdout": !o.detach, "AttachStderr": !o.detach, "Tty": o.tty, "Privileged": o.privileged,
				"Env": env, "User": o.user, "WorkingDir": o.workdir, "Cmd": args[1:], "Detach": o.detach,
			}
			return d.exec(cmd.Context(), args[0], body, connection{kind: "exec", tty: o.tty, stdin: o.interactive}, o.detach)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.detach, "detach", "d", false, "Do not wait for it")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "Keep standard input open")
	f.BoolVarP(&o.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.BoolVar(&o.privileged, "privileged", false, "Give extended privileges")
	f.StringArrayVarP(&o.env, "env", "e", nil, "Set environment variables")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "Read in a file of environment variables")
	f.StringVarP(&o.user, "user", "u", "", "User (NAME|UID[:GROUP])")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory")
	f.String("detach-keys", "", "Accepted")
	hide(f, "detach-keys")
	return cmd
}

// readEnv reads -e and --env-file: a name alone takes this process's value.
func readEnv(env, files []string) ([]string, error) {
	var all []string
	for _, file := range files {
		lines, err := kvfile.Parse(file, os.LookupEnv)
		if err != nil {
			return nil, &usageError{fmt.Sprintf("env file: %v", err)}
		}
		all = append(all, lines...)
	}
	for _, e := range env {
		if !strings.Contains(e, "=") {
			value, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + value
		}
		all = append(all, e)
	}
	return all, nil
}

func (d *docker) exec(ctx context.Context, container string, body map[string]any, c connection, detach bool) error {
	var made struct {
		ID string `json:"Id"`
	}
	if err := d.call(ctx, "POST", pathOf("containers", container, "exec"), nil, body, &made); err != nil {
		return err
	}
	start := map[string]any{"Detach": detach, "Tty": c.tty}
	if detach {
		return d.call(ctx, "POST", pathOf("exec", made.ID, "start"), nil, start, nil)
	}
	cl, err := d.client()
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	s, err := cl.Hijack(ctx, client.Request{Method: "POST", Path: pathOf("exec", made.ID, "start"), Body: start})
	if err != nil {
		return runError(err)
	}
	defer s.Close()
	c.id = made.ID
	stop, err := d.connect(ctx, s, c)
	if err != nil {
		return err
	}
	defer stop()
	if err := s.Copy(c.tty, d.io.out, d.io.err); err != nil {
		return err
	}
	var end struct{ ExitCode int }
	if err := d.call(ctx, "GET", pathOf("exec", made.ID, "json"), nil, nil, &end); err != nil {
		return err
	}
	return exitWithCode(end.ExitCode)
}

// A listedContainer is one of GET /containers/json.
type listedContainer struct {
	ID, Image, Command, State, Status string
	Names                             []string
	Created                           int64
	Labels                            map[string]string
	Ports                             []struct {
		IP, Type                string
		PrivatePort, PublicPort int
	}
	Mounts          []struct{ Name, Source string }
	NetworkSettings struct{ Networks map[string]any }
	SizeRw          int64
	SizeRootFs      int64
}

func (d *docker) newPs() *cobra.Command {
	var all, latest, noTrunc, size bool
	var last int
	var filters []string
	t := table{
		columns: []column{
			{"ID", "CONTAINER ID"}, {"Image", "IMAGE"}, {"Command", "COMMAND"}, {"RunningFor", "CREATED"},
			{"Status", "STATUS"}, {"Ports", "PORTS"}, {"Names", "NAMES"},
		},
		headers: map[string]string{
			"CreatedAt": "CREATED AT", "State": "STATE", "Labels": "LABELS", "Mounts": "MOUNTS",
			"Networks": "NETWORKS", "Size": "SIZE", "LocalVolumes": "LOCAL VOLUMES",
		},
		id: "ID",
	}
	cmd := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List containers", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterQuery(filters)
			if err != nil {
				return err
			}
			if latest {
				last = 1
			}
			if all {
				q.Set("all", "1")
			}
			if last > 0 {
				q.Set("limit", strconv.Itoa(last))
			}
			if size || strings.Contains(t.format, ".Size") || strings.Contains(t.format, "{{json .}}") {
				q.Set("size", "1")
			}
			if size {
				t.columns = append(t.columns, column{"Size", "SIZE"})
			}
			var list []listedContainer
			if err := d.call(cmd.Context(), "GET", "/containers/json", q, nil, &list); err != nil {
				return err
			}
			rows := []map[string]any{}
			for i := range list {
				rows = append(rows, list[i].row(noTrunc))
			}
			return t.print(d.io.out, rows)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Show all containers (default shows just running)")
	f.StringArrayVarP(&filters, "filter", "f", nil, "Filter output")
	f.IntVarP(&last, "last", "n", -1, "Show n last created containers")
	f.BoolVarP(&latest, "latest", "l", false, "Show the latest created container")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&size, "size", "s", false, "Show sizes")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Only display container IDs")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func (c *listedContainer) row(noTrunc bool) map[string]any {
	id, command := c.ID, c.Command
	if !noTrunc {
		id, command = id[:min(12, len(id))], ellipsis(command, maxCommand)
	}
	var ports, names, mounts []string
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)
		if p.PublicPort != 0 {
			ip := p.IP
			if strings.Contains(ip, ":") {
				ip = "[" + ip + "]"
			}
			text = fmt.Sprintf("%s:%d->%s", ip, p.PublicPort, text)
		}
		ports = append(ports, text)
	}
	for _, n := range c.Names {
		names = append(names, strings.TrimPrefix(n, "/"))
	}
	volumes := 0
	for _, m := range c.Mounts {
		if m.Name != "" {
			volumes++
			mounts = append(mounts, m.Name)
		} else {
			mounts = append(mounts, m.Source)
		}
	}
	created := time.Unix(c.Created, 0)
	size := units.HumanSizeWithPrecision(float64(c.SizeRw), 3)
	if c.SizeRootFs > 0 {
		size += " (virtual " + units.HumanSizeWithPrecision(float64(c.SizeRootFs), 3) + ")"
	}
	slices.Sort(ports)
	return map[string]any{
		"ID": id, "Image": c.Image, "Command": strconv.Quote(command), "Names": strings.Join(names, ","), "State": c.State, "Status": c.Status,
		"CreatedAt": created.Format("2006-01-02 15:04:05 -0700 MST"), "RunningFor": ago(created), "Labels": joinLabels(c.Labels), allLabels: c.Labels,
		"Ports": strings.Join(ports, ", "), "Networks": strings.Join(slices.Sorted(maps.Keys(c.NetworkSettings.Networks)), ","),
		"Mounts": strings.Join(mounts, ","), "Size": size, "LocalVolumes": strconv.Itoa(volumes),
	}
}
