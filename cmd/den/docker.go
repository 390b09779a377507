package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"den/internal/client"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/registry"
)

// A docker is the command of that name: a small client of the Docker API, for images that have no
// other.
type docker struct {
	globals *globals
	io      streams
	options client.Options
	context string
	debug   bool
}

// newDocker is the command docker.
func newDocker(g *globals, io streams) *cobra.Command {
	d := &docker{globals: g, io: io}
	cmd := &cobra.Command{
		Use: "docker [OPTIONS] COMMAND", Short: "Ask a Docker daemon, such as den serve, as docker does",
		SilenceUsage: true, SilenceErrors: true, Args: unknownCommand, TraverseChildren: true, Version: releaseVersion + ", build den",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetVersionTemplate("Docker version {{.Version}}\n")
	cmd.SuggestionsMinimumDistance = suggestWithin
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetOut(io.out)
	cmd.SetErr(io.err)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &codedError{flagError(cmd, err), 125} })
	// Not persistent: docker's commands have other uses for the letters.
	f := cmd.Flags()
	f.SetInterspersed(false) // a command that is not known is told before its flags are
	f.StringVarP(&d.options.Host, "host", "H", "", "Daemon to ask (default $DOCKER_HOST)")
	f.BoolVar(&d.options.TLS, "tls", false, "Speak TLS")
	f.BoolVar(&d.options.Verify, "tlsverify", os.Getenv("DOCKER_TLS_VERIFY") != "", "Speak TLS and verify the daemon")
	f.StringVar(&g.config, "config", "", "Directory of config.json (default $DOCKER_CONFIG, else ~/.docker)")
	f.StringVarP(&d.context, "context", "c", "", "Accepted: there is one context, default")
	f.BoolVarP(&d.debug, "debug", "D", false, "Accepted")
	f.StringP("log-level", "l", "info", "Accepted")
	for _, name := range []string{"context", "debug", "log-level"} {
		hide(f, name)
	}
	cmd.AddCommand(d.commands()...)
	cmd.AddCommand(d.groups()...)
	plainUsage(cmd)
	return cmd
}

// dockerName is what den is called as that command.
const dockerName = "docker"

// A codedError is docker's own, with an exit code that is not 1.
type codedError struct {
	error
	code int
}

// Unwrap gives the cause.
func (e *codedError) Unwrap() error { return e.error }

// runDocker is the command docker with these arguments. What goes wrong is said in docker's words.
func runDocker(ctx context.Context, args []string, io streams) error {
	cmd := newDocker(newGlobals(), io)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	fmt.Fprintln(io.err, progress.Plain(err.Error()))
	var coded *codedError
	if errors.As(err, &coded) {
		return &exitError{coded.code}
	}
	return &exitError{1} // also for arguments that are too many or too few
}

// commands are docker's that den answers to.
func (d *docker) commands() []*cobra.Command {
	return []*cobra.Command{
		d.newRun("run"), d.newRun("create"), d.newExec(), d.newLogs(), d.newRm(), d.newPort(),
		d.newAttach(), d.newCp(), d.newCommit(), d.newDiff(), d.newExport(), d.newStats(), d.newTop(),
		d.newLife("start", "Start stopped containers"), d.newLife("stop", "Stop running containers"), d.newLife("restart", "Restart containers"),
		d.newLife("kill", "Kill running containers"), d.newLife("pause", "Pause containers"), d.newLife("unpause", "Let paused containers go on"), d.newWait(), d.newRename(),
		d.newPs(), d.newInspect(), d.newPull(), d.newPush(), d.newImages(), d.newRmi(), d.newTag(), d.newSave(), d.newLoad(), d.newImport(), d.newBuild(), d.newHistory(),
		newLogin(d.globals, d.io), newLogout(d.globals, d.io), d.newInfo(), d.newVersion(), d.newEvents(),
	}
}

// lifeCommands is how many of commands, from the first on, are about containers alone.
const lifeCommands = 21

// groups are docker's longer spellings.
func (d *docker) groups() []*cobra.Command {
	return []*cobra.Command{
		group("container", "Manage containers", append(d.commands()[:lifeCommands], d.newObjectInspect("container"), renamed(d.newPs(), "ls", "list", "ps"), d.newPrune("container"))...),
		group("image", "Manage images", d.newPull(), d.newPush(), renamed(d.newImages(), "ls", "list"), renamed(d.newRmi(), "rm", "remove"), d.newTag(), d.newSave(), d.newLoad(), d.newImport(), d.newBuild(), d.newHistory(), d.newObjectInspect("image"), d.newPrune("image")),
		group("network", "Manage networks", d.newNetworkCreate(), d.newObjects("network"), d.newObjectsRemove("network"), d.newObjectInspect("network"), d.newNetworkConnect("connect"), d.newNetworkConnect("disconnect"), d.newPrune("network")),
		group("volume", "Manage volumes", d.newVolumeCreate(), d.newObjects("volume"), d.newObjectsRemove("volume"), d.newObjectInspect("volume"), d.newPrune("volume")),
		group("system", "Manage the daemon", d.newInfo(), d.newEvents(), d.newSystemPrune()),
	}
}

// dockerCommands are the names of docker's commands.
func dockerCommands() []string {
	names := []string{}
	for _, cmd := range append((&docker{globals: newGlobals()}).commands(), (&docker{globals: newGlobals()}).groups()...) {
		names = append(names, cmd.Name())
	}
	return names
}

// client finds the daemon.
func (d *docker) client() (*client.Client, error) {
	o := d.options
	if o.Host == "" {
		o.Host = cmp.Or(os.Getenv("DOCKER_HOST"), client.DefaultHost)
		if dir := os.Getenv("XDG_RUNTIME_DIR"); os.Getenv("DOCKER_HOST") == "" && dir != "" && os.Geteuid() != 0 {
			if _, err := os.Stat("/var/run/docker.sock"); err != nil {
				o.Host = "unix://" + filepath.Join(dir, "docker.sock")
			}
		}
	}
	if o.CertDir = os.Getenv("DOCKER_CERT_PATH"); o.CertDir == "" {
		o.CertDir = d.configDir()
	}
	return client.New(o)
}

// configDir is where docker keeps its configuration.
func (d *docker) configDir() string {
	if dir := cmp.Or(d.globals.config, os.Getenv("DOCKER_CONFIG")); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".docker"
	}
	return filepath.Join(home, ".docker")
}

// call asks for JSON.
func (d *docker) call(ctx context.Context, method, path string, query url.Values, body, into any) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	return c.Call(ctx, client.Request{Method: method, Path: path, Query: query, Body: body}, into)
}

// auth is the header with the user's credential for the registry of an image.
func (d *docker) auth(ctx context.Context, image string) (http.Header, error) {
	ref, err := oci.ParseReference(image)
	if err != nil {
		return nil, &usageError{err.Error()}
	}
	cred, err := d.credential(ctx, ref.Domain, ref.Path)
	if err != nil {
		return nil, err
	}
	return client.AuthHeader(cred.Username, cred.Password, cred.IdentityToken, ref.Domain), nil
}

func (d *docker) credential(ctx context.Context, host, repository string) (registry.Credential, error) {
	reg, err := registry.New(registry.Options{ConfigDir: d.globals.config, Notice: func(line string) { fmt.Fprintln(d.io.err, line) }})
	if err != nil {
		return registry.Credential{}, err
	}
	return reg.Credential(ctx, host, repository)
}

// progress prints docker's lines as they come: one for each new status of an ID.
func (d *docker) progress(r stdio.Reader, quiet bool) error {
	seen := map[string]string{}
	dec := json.NewDecoder(r)
	for {
		var m struct {
			Stream, Status, ID, Error string
			ErrorDetail               *struct {
				Code    int
				Message string
			}
		}
		if err := dec.Decode(&m); err == stdio.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read progress: %w", err)
		}
		switch {
		case m.ErrorDetail != nil && m.ErrorDetail.Code > 0:
			fmt.Fprintln(d.io.err, m.ErrorDetail.Message)
			return &exitError{m.ErrorDetail.Code}
		case m.ErrorDetail != nil:
			return fmt.Errorf("%s", m.ErrorDetail.Message)
		case m.Error != "":
			return fmt.Errorf("%s", m.Error)
		case quiet:
		case m.Stream != "":
			fmt.Fprint(d.io.out, m.Stream)
		case m.ID != "" && seen[m.ID] == m.Status:
		case m.ID != "":
			seen[m.ID] = m.Status
			fmt.Fprintf(d.io.out, "%s: %s\n", m.ID, m.Status)
		case m.Status != "":
			fmt.Fprintln(d.io.out, m.Status)
		}
	}
}

// ask gives the header and the body of an answer.
func (d *docker) ask(ctx context.Context, r client.Request) (http.Header, stdio.ReadCloser, error) {
	c, err := d.client()
	if err != nil {
		return nil, nil, err
	}
	return c.Ask(ctx, r)
}

// stream asks for progress and prints it.
func (d *docker) stream(ctx context.Context, r client.Request, quiet bool) error {
	_, body, err := d.ask(ctx, r)
	if err != nil {
		return err
	}
	defer body.Close()
	return d.progress(body, quiet)
}

// filterQuery is docker's form of --filter.
func filterQuery(values []string) (url.Values, error) {
	filters, err := parseFilters(values)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	if len(filters) > 0 {
		text, err := json.Marshal(filters)
		if err != nil {
			return nil, err
		}
		q.Set("filters", string(text))
	}
	return q, nil
}

// unlessGone says what is not there and, with force, takes it for success.
func (d *docker) unlessGone(err error, force bool) error {
	if !force || !errdefs.IsNotFound(err) {
		return err
	}
	fmt.Fprintln(d.io.err, progress.Plain(err.Error()))
	return nil
}

// each does something with every argument, and tells of all that failed.
func (d *docker) each(args []string, echo bool, do func(name string) error) error {
	failed := 0
	for _, name := range args {
		if err := do(name); err != nil {
			fmt.Fprintln(d.io.err, progress.Plain(err.Error()))
			failed++
		} else if echo {
			fmt.Fprintln(d.io.out, name)
		}
	}
	if failed > 0 {
		return &exitError{1}
	}
	return nil
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// pathOf is an API path about a named object.
func pathOf(parts ...string) string { return "/" + strings.Join(parts, "/") }
