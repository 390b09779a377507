package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/containerd/console"
	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"den/internal/daemon"
	"den/internal/engine"
	"den/internal/progress/display"
	"den/internal/sandbox"
)

// A runCall is one den run as it was typed.
type runCall struct {
	*globals
	options       *runOptions
	streams       streams
	image         string
	args          []string
	entrypointSet bool
}

// runErrorCode is for an error of den's own, before or beside the program: exit code 125.
const runErrorCode = 125

func runRun(ctx context.Context, call runCall) error {
	req, err := call.request()
	if err != nil {
		return err
	}
	err = withDen(ctx, call.globals, call.streams, func(d *daemon.Den) error {
		if call.options.detach {
			return call.detach(ctx, d, req)
		}
		return call.follow(ctx, d, req, func(string) {})
	})
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	report(call.streams.err, err)
	return &exitError{exitCode(err)}
}

// exitCode is docker's for an error that is not the program's own.
func exitCode(err error) int {
	var exec *sandbox.ExecError
	if errors.As(err, &exec) {
		return exec.Code
	}
	return runErrorCode
}

// follow runs the container with the call's streams, to its end.
func (call runCall) follow(ctx context.Context, d *daemon.Den, req engine.RunRequest, started func(id string)) error {
	eng, err := d.Engine(ctx)
	if err != nil {
		return err
	}
	pulling := display.NewTransfer(call.streams.err, call.options.quiet)
	signals, stopSignals := forwardedSignals()
	defer stopSignals()
	s := engine.Streams{
		Stdin: call.streams.in, Stdout: call.streams.out, Stderr: call.streams.err,
		Signals: signals, Sink: pulling,
		Warn: func(text string) { fmt.Fprintln(call.streams.err, "WARNING:", text) },
	}
	restore := func() {}
	s.Started = func(id string) {
		pulling.Close()
		started(id)
	}
	if req.TTY {
		raw, sizes, err := call.terminal()
		if err != nil {
			return err
		}
		s.Resizes, restore = sizes, raw
	}
	defer func() { restore() }()
	// A first interrupt is the program's to handle, so ctx must not end it.
	exit, err := eng.Run(context.WithoutCancel(ctx), req, s)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return &exitError{exit.Code}
	}
	return nil
}

// forwardedSignals delivers what a terminal or a supervisor sends.
func forwardedSignals() (<-chan unix.Signal, func()) {
	in := make(chan os.Signal, 16)
	out := make(chan unix.Signal, 16)
	signal.Notify(in, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-in:
				if sig, ok := s.(unix.Signal); ok {
					out <- sig
				}
			case <-done:
				return
			}
		}
	}()
	return out, func() { signal.Stop(in); close(done) }
}

// terminal puts den's terminal into raw mode and reports its size and changes.
func (call runCall) terminal() (restore func(), sizes <-chan engine.Size, err error) {
	if call.options.interactive && !term.IsTerminal(int(call.streams.in.Fd())) {
		return nil, nil, errors.New("the input device is not a TTY; leave out -t, or run den in a terminal")
	}
	out := make(chan engine.Size, 1)
	if !term.IsTerminal(int(call.streams.out.Fd())) {
		return func() {}, out, nil
	}
	tty, err := console.ConsoleFromFile(call.streams.out)
	if err != nil {
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	undo := func() {}
	if call.options.interactive {
		if err := tty.SetRaw(); err != nil {
			return nil, nil, fmt.Errorf("terminal: %w", err)
		}
		undo = func() { _ = tty.Reset() }
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	changed <- unix.SIGWINCH
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				if size, err := tty.Size(); err == nil {
					out <- engine.Size{Rows: size.Height, Cols: size.Width}
				}
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(changed); close(done); undo() }, out, nil
}

func (call runCall) request() (engine.RunRequest, error) {
	o := call.options
	req := engine.RunRequest{
		Image: call.image, Pull: o.pull, Name: o.name, Args: call.args, WorkingDir: o.workdir,
		User: o.user, GroupAdd: o.groupAdd, Hostname: o.hostname, AddHosts: o.addHosts, DNS: o.dns,
		Network: o.network, CapAdd: o.capAdd, CapDrop: o.capDrop, Security: o.securityOpt,
		ReadOnly: o.readOnly, Init: o.init, StopSignal: o.stopSignal, Remove: o.remove,
		TTY: o.tty, OpenStdin: o.interactive, CIDFile: o.cidFile,
	}
	if call.entrypointSet {
		req.Entrypoint = []string{o.entrypoint}
	}
	if o.platform != "" {
		p, err := platforms.Parse(o.platform)
		if err != nil {
			return req, &usageError{fmt.Sprintf("platform %q: %v", o.platform, err)}
		}
		req.Platform = &p
	}
	var err error
	if req.Env, err = call.environment(); err != nil {
		return req, err
	}
	req.Labels = keyValues(o.labels)
	req.Sysctls = keyValues(o.sysctls)
	if req.Mounts, err = call.mounts(); err != nil {
		return req, err
	}
	if req.ShmBytes, err = byteSize("shm-size", o.shmSize); err != nil {
		return req, err
	}
	if req.Limits, err = call.limits(); err != nil {
		return req, err
	}
	for _, u := range o.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return req, &usageError{fmt.Sprintf("ulimit %q: %v", u, err)}
		}
		req.Ulimits = append(req.Ulimits, engine.Ulimit{Name: l.Name, Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return req, nil
}

func (call runCall) limits() (l engine.Limits, err error) {
	o := call.options
	l = engine.Limits{Pids: o.pidsLimit, CPUShares: o.cpuShares, CpusetCPUs: o.cpusetCPUs}
	if l.MemoryBytes, err = byteSize("memory", o.memory); err != nil {
		return l, err
	}
	switch o.memorySwap {
	case "-1":
		l.MemorySwapBytes = -1
	default:
		if l.MemorySwapBytes, err = byteSize("memory-swap", o.memorySwap); err != nil {
			return l, err
		}
	}
	if o.cpus != "" {
		if _, err := fmt.Sscanf(o.cpus, "%g", &l.CPUs); err != nil || l.CPUs <= 0 {
			return l, &usageError{fmt.Sprintf("cpus %q: want a number such as 1.5", o.cpus)}
		}
	}
	return l, nil
}

func byteSize(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return 0, &usageError{fmt.Sprintf("%s %q: want a size such as 512m or 2g", flag, s)}
	}
	return n, nil
}

func (call runCall) mounts() ([]engine.Mount, error) {
	var out []engine.Mount
	for _, group := range []struct {
		specs []string
		parse func(string) (engine.Mount, error)
	}{{call.options.volumes, parseVolume}, {call.options.mounts, parseMount}, {call.options.tmpfs, parseTmpfs}} {
		for _, s := range group.specs {
			m, err := group.parse(s)
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		}
	}
	return out, nil
}

// environment reads --env-file and --env; a name alone takes den's own value.
func (call runCall) environment() ([]string, error) {
	var out []string
	add := func(entry string) {
		if !strings.Contains(entry, "=") {
			value, ok := os.LookupEnv(entry)
			if !ok {
				return
			}
			entry += "=" + value
		}
		out = append(out, entry)
	}
	for _, file := range call.options.envFiles {
		lines, err := envFile(file)
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			add(line)
		}
	}
	for _, e := range call.options.env {
		add(e)
	}
	return out, nil
}

func envFile(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("env file: %v", err)}
	}
	defer f.Close()
	var out []string
	scan := bufio.NewScanner(f)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimLeft(scan.Text(), " \t\ufeff")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, _, _ := strings.Cut(line, "="); name == "" || strings.ContainsAny(name, " \t") {
			return nil, &usageError{fmt.Sprintf("%s:%d: %q is not a variable's name", file, n, name)}
		}
		out = append(out, line)
	}
	return out, scan.Err()
}

// keyValues reads KEY[=VALUE] entries; nil for none.
func keyValues(entries []string) map[string]string {
	if len(entries) == 0 {
		return nil
	}
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return m
}

func expandHome(p string) string {
	if p == "~" || strings.HasPrefix(p, "~/") {
		if home, err := os.UserHomeDir(); err == nil {
			return home + p[1:]
		}
	}
	return p
}

// refusedRunFlags are docker run's that den cannot honour: a sentence is better
// than a container that is not what was asked for.
func refusedRunFlags(f *pflag.FlagSet) {
	for name, why := range map[string]string{
		"privileged": "den runs no truly privileged containers; name the capabilities with --cap-add",
		"gpus":       "den has no GPU support",
		"device":     "den passes no devices through",
		"publish":    "published ports need den serve; --network=host shares the network of the container around den",
		"restart":    "restart policies need den serve",
		"pid":        "a container of den has its own processes only",
		"ipc":        "a container of den has its own IPC namespace",
		"link":       "links need den serve",
	} {
		shorthand := ""
		if name == "publish" {
			shorthand = "p"
		}
		f.VarP(&refusedFlag{name, why}, name, shorthand, "Refused: "+why)
		hide(f, name)
	}
	f.Lookup("privileged").NoOptDefVal = "true"
}

type refusedFlag struct{ name, why string }

// Set refuses any value but the one that asks for nothing.
func (r *refusedFlag) Set(value string) error {
	if value == "false" || value == "no" {
		return nil
	}
	return errors.New(r.why)
}

func (r *refusedFlag) String() string { return "" }

// Type is what help shows for the value.
func (r *refusedFlag) Type() string { return "string" }
