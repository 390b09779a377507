package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"den/internal/client"
	"den/internal/engine"
)

// dockerRun are the flags of docker run that den run has not.
type dockerRun struct {
	runOptions
	dockerLimits
	publish, links, volumesFrom, devices, expose, aliases, logOpts, annotations []string
	publishAll, privileged, noHealth                                            bool
	restart, pid, ipc, uts, userns, ip, ip6, mac, logDriver, cgroupns           string
	healthCmd                                                                   string
	healthInterval, healthTimeout, healthStart, healthStartInterval             string
	healthRetries                                                               int
	detachKeys, domainname                                                      string
	running                                                                     bool // already: it is attached to
}

func (d *docker) newRun(name string) *cobra.Command {
	o := &dockerRun{}
	cmd := &cobra.Command{
		Use: name + " [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Create a container, and run it", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			call := runCall{globals: d.globals, options: &o.runOptions, streams: d.io, image: args[0], args: args[1:], set: cmd.Flags().Changed}
			return d.run(cmd.Context(), o, call, name == "create")
		},
	}
	if name == "create" {
		cmd.Short = "Create a container"
	}
	f := cmd.Flags()
	o.runOptions.bind(f, "default")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "Publish a container's port ([IP:][HOST:]CONTAINER[/PROTOCOL])")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "Publish all exposed ports")
	f.StringArrayVar(&o.links, "link", nil, "Add a link to another container")
	f.StringArrayVar(&o.volumesFrom, "volumes-from", nil, "Mount volumes of another container")
	f.StringArrayVar(&o.devices, "device", nil, "Add a device")
	f.StringArrayVar(&o.expose, "expose", nil, "Expose a port")
	f.StringArrayVar(&o.aliases, "network-alias", nil, "Add a name in the network")
	f.BoolVar(&o.privileged, "privileged", false, "Give extended privileges")
	f.StringVar(&o.restart, "restart", "", "Restart policy (no, on-failure[:N], always, unless-stopped)")
	f.StringVar(&o.ip, "ip", "", "IPv4 address")
	f.StringVar(&o.ip6, "ip6", "", "IPv6 address")
	f.StringVar(&o.mac, "mac-address", "", "MAC address")
	f.StringVar(&o.logDriver, "log-driver", "", "Logging driver")
	f.StringArrayVar(&o.logOpts, "log-opt", nil, "Log driver options")
	f.StringArrayVar(&o.annotations, "annotation", nil, "Add an annotation")
	f.StringVar(&o.detachKeys, "detach-keys", "", "Accepted")
	f.StringVar(&o.domainname, "domainname", "", "Container NIS domain name")
	o.bindHealth(f)
	o.dockerLimits.bind(f)
	for name, to := range map[string]*string{"pid": &o.pid, "ipc": &o.ipc, "uts": &o.uts, "userns": &o.userns, "cgroupns": &o.cgroupns} {
		f.StringVar(to, name, "", "Namespace to use")
	}
	return cmd
}

func (o *dockerRun) bindHealth(f *pflag.FlagSet) {
	f.StringVar(&o.healthCmd, "health-cmd", "", "Command to run to check health")
	f.StringVar(&o.healthInterval, "health-interval", "", "Time between checks")
	f.StringVar(&o.healthTimeout, "health-timeout", "", "Time that a check may take")
	f.StringVar(&o.healthStart, "health-start-period", "", "Time before failures count")
	f.StringVar(&o.healthStartInterval, "health-start-interval", "", "Time between checks before failures count")
	f.IntVar(&o.healthRetries, "health-retries", 0, "Failures that make it unhealthy")
	f.BoolVar(&o.noHealth, "no-healthcheck", false, "Disable the image's check")
}

// run creates a container and, unless that is all, runs it to its end.
func (d *docker) run(ctx context.Context, o *dockerRun, call runCall, createOnly bool) error {
	req, err := call.request()
	if err != nil {
		return &codedError{err, runErrorCode}
	}
	if o.tty && !o.detach && !createOnly {
		if err := checkTerminal(d.io.in, o.interactive); err != nil {
			return err
		}
	}
	body, err := o.body(&req, createOnly)
	if err != nil {
		return &codedError{err, runErrorCode}
	}
	id, err := d.create(ctx, o, body)
	if err != nil && createOnly {
		return err
	}
	if err != nil {
		return runError(err)
	}
	if o.cidFile != "" {
		if err := os.WriteFile(o.cidFile, []byte(id), 0o644); err != nil {
			return err
		}
	}
	if createOnly {
		fmt.Fprintln(d.io.out, id)
		return nil
	}
	if o.detach {
		if err := d.call(ctx, "POST", pathOf("containers", id, "start"), nil, nil, nil); err != nil {
			return runError(err)
		}
		fmt.Fprintln(d.io.out, id)
		return nil
	}
	return d.attached(ctx, o, id)
}

// runError is one of docker run's own, whose exit code is 125, or what a shell says of a program
// that cannot be executed.
func runError(err error) error {
	var e *client.Error
	if !errors.As(err, &e) {
		return err
	}
	code := 125
	switch {
	case strings.Contains(e.Message, "executable file not found"), strings.Contains(e.Message, "no such file or directory"):
		code = 127
	case strings.Contains(e.Message, "permission denied"), strings.Contains(e.Message, "is a directory"):
		code = 126
	}
	return &codedError{err, code}
}

// create creates a container, and pulls its image if it is not there.
func (d *docker) create(ctx context.Context, o *dockerRun, body any) (string, error) {
	q := url.Values{}
	if o.name != "" {
		q.Set("name", o.name)
	}
	if o.platform != "" {
		q.Set("platform", o.platform)
	}
	var created struct {
		ID       string `json:"Id"`
		Warnings []string
	}
	image := body.(map[string]any)["Image"].(string)
	if o.pull == "always" {
		if err := d.pullImage(ctx, image, o.platform, o.quiet); err != nil {
			return "", err
		}
	}
	err := d.call(ctx, "POST", "/containers/create", q, body, &created)
	if errdefs.IsNotFound(err) && o.pull != "never" && strings.Contains(err.Error(), "No such image") {
		fmt.Fprintf(d.io.err, "Unable to find image '%s' locally\n", familiarName(image))
		if err := d.pullImage(ctx, image, o.platform, o.quiet); err != nil {
			return "", err
		}
		err = d.call(ctx, "POST", "/containers/create", q, body, &created)
	}
	for _, w := range created.Warnings {
		fmt.Fprintln(d.io.err, "WARNING:", w)
	}
	return created.ID, err
}

// attached starts a container, if it does not run, with its streams here, and ends with its exit code.
func (d *docker) attached(ctx context.Context, o *dockerRun, id string) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	q := url.Values{"stream": {"1"}}
	for _, stream := range []string{"stdout", "stderr"} {
		if o.attached(stream) {
			q.Set(stream, "1")
		}
	}
	if o.interactive {
		q.Set("stdin", "1")
	}
	// The container ends by its own will: signals go to it.
	ctx = context.WithoutCancel(ctx)
	s, err := c.Hijack(ctx, client.Request{Method: "POST", Path: pathOf("containers", id, "attach"), Query: q})
	if err != nil {
		return err
	}
	defer s.Close()
	condition := "next-exit"
	switch {
	case o.running:
		condition = "not-running"
	case o.remove:
		condition = "removed"
	}
	waiting, err := c.Do(ctx, client.Request{Method: "POST", Path: pathOf("containers", id, "wait"), Query: url.Values{"condition": {condition}}})
	if err != nil {
		return err
	}
	defer waiting.Close()
	if !o.running {
		if err := d.call(ctx, "POST", pathOf("containers", id, "start"), nil, nil, nil); err != nil {
			return runError(err)
		}
	}
	stop, err := d.connect(ctx, s, connection{id: id, kind: "containers", tty: o.tty, stdin: o.interactive, signals: o.sigProxy && !o.tty})
	if err != nil {
		return err
	}
	defer stop()
	if err := s.Copy(o.tty, d.io.out, d.io.err); err != nil {
		return err
	}
	var end struct {
		StatusCode int
		Error      *struct{ Message string }
	}
	if err := decodeOne(waiting, &end); err != nil {
		return err
	}
	if end.Error != nil && end.Error.Message != "" {
		return errors.New(end.Error.Message)
	}
	return exitWithCode(end.StatusCode)
}

func exitWithCode(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code}
}

// A connection is a container's, or a program's, that this terminal is connected to.
type connection struct {
	id, kind   string // kind is containers or exec
	tty, stdin bool
	signals    bool
}

// connect copies input, sizes and signals until the function is called.
func (d *docker) connect(ctx context.Context, s *client.Stream, c connection) (stop func(), err error) {
	t := watchTerminal(d.io)
	done := make(chan struct{})
	var wg sync.WaitGroup
	if c.tty && c.stdin {
		if err := t.raw(); err != nil {
			t.close()
			return nil, err
		}
	}
	if c.stdin {
		go func() { // ends with the process: a terminal's read cannot be interrupted
			_, _ = copyAll(s, d.io.in)
			_ = s.CloseWrite()
		}()
	}
	resize := func(size engine.Size) {
		q := url.Values{"h": {strconv.Itoa(int(size.Rows))}, "w": {strconv.Itoa(int(size.Cols))}}
		_ = d.call(ctx, "POST", pathOf(c.kind, c.id, "resize"), q, nil, nil) // it may have ended
	}
	signals, giveBack := make(<-chan unix.Signal), func() {}
	if c.signals {
		signals, giveBack = forwardedSignals()
	}
	wg.Go(func() {
		for {
			select {
			case size := <-t.sizes:
				if c.tty && size != (engine.Size{}) {
					resize(size)
				}
			case sig := <-signals:
				_ = d.call(ctx, "POST", pathOf("containers", c.id, "kill"), url.Values{"signal": {strconv.Itoa(int(sig))}}, nil, nil)
			case <-done:
				return
			}
		}
	})
	return func() {
		giveBack()
		close(done)
		wg.Wait()
		t.close()
	}, nil
}
