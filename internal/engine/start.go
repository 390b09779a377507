package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/image"
	"den/internal/network"
	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/sys"
	"den/internal/tree"
)

// sandboxDir, in a container's directory, is what a sandbox that outlives den is controlled
// by. It is there from before the start until the end is accounted for.
const sandboxDir = "sandbox"

// SandboxDirs are the places of what outlives den in containers' directories, for sandbox.JoinUserns.
func SandboxDirs(containers []string) []string {
	dirs := make([]string, len(containers))
	for i, c := range containers {
		dirs[i] = filepath.Join(c, sandboxDir)
	}
	return dirs
}

// A run is what runs of a container now.
type run struct {
	life    *life
	c       *container
	sb      sandbox.Sandbox
	streams *streams
	space   network.Space // nil without networks, and for an adopted one
	control *os.File
	watch   *store.Watch
	health  *monitor
	// stopping is set when a person asked for the end; guarded by life.mu.
	stopping bool
	// targets are where something is mounted: the sandbox makes what is missing for as long
	// as it runs. Empty for an adopted one.
	targets []string
	// lasting runs survive the end of this process.
	lasting bool
	// unwritten says that the record on disk is still that of before the start: who adopts
	// the run finds out. Guarded by life.mu.
	unwritten bool
	// ended is closed when the end is accounted for.
	ended chan struct{}
}

// Start starts a container; an error of class errdefs.ErrNotModified says that it runs.
func (e *Engine) Start(ctx context.Context, nameOrID string) error {
	e.serve()
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	r := l.snapshot()
	switch {
	case r.State == statePaused:
		return conflict("cannot start a paused container, try unpause instead")
	case r.alive():
		return notModified("container %s is already running", l.id)
	case l.gone():
		return notFound("No such container: %s", nameOrID)
	}
	l.cancelRestart()
	// What a person starts counts from the beginning.
	l.mu.Lock()
	l.record.RestartCount, l.backoff = 0, 0
	l.mu.Unlock()
	return l.start(context.WithoutCancel(ctx))
}

func (l *life) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

// start starts the container. The caller holds op.
func (l *life) start(ctx context.Context) (err error) {
	r := &run{life: l, ended: make(chan struct{})}
	l.setStarting(true)
	defer l.setStarting(false)
	if l.engine.closing() { // or Shutdown sees that this one starts
		return &sentence{"den is ending, and starts no container any more: start it when den serves again", errdefs.ErrUnavailable}
	}
	l.mu.Lock()
	dir := l.dir
	l.dir = nil
	l.mu.Unlock()
	if dir == nil {
		if dir, err = l.locked(ctx); err != nil {
			return err
		}
	}
	l.mu.Lock()
	r.c = &container{
		engine: l.engine, request: &l.request.RunRequest, more: l.request, image: l.image, config: l.config,
		dir: dir, record: l.record,
	}
	l.mu.Unlock()
	if err := r.launch(ctx); err != nil {
		return l.notStarted(r, err)
	}
	if err := failpoint.Hit("engine.start.started"); err != nil {
		return l.notStarted(r, err)
	}
	l.mu.Lock()
	next := l.record
	next.State, next.Started, next.Pid = stateRunning, time.Now().UTC(), r.sb.Pid()
	next.Stopped, next.Error, next.Uppers, next.Health = false, "", r.c.record.Uppers, nil
	if r.c.healthCheck() != nil {
		next.Health = &Health{Status: healthStarting}
	}
	if r.unwritten = r.lasting; !r.lasting {
		err = next.write(dir.Path())
	}
	if err == nil {
		l.record, r.c.record = next, next
		l.run, l.launching = r, nil
		r.begin()
		for _, a := range l.waiting {
			a.begin(r)
		}
		l.waiting = nil
		l.notify()
	}
	l.mu.Unlock()
	if err != nil {
		return l.notStarted(r, err)
	}
	l.engine.containerEvent(&next, "start", nil)
	l.engine.residents.wg.Go(r.follow)
	return nil
}

func (l *life) setStarting(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starting = on
}

// writeStarted writes the record of the start, for which nobody has to wait: replacing a file
// can take as long as the start itself. Somebody may have written a later one.
func (r *run) writeStarted() error {
	l := r.life
	l.mu.Lock()
	defer l.mu.Unlock()
	if !r.unwritten {
		return nil
	}
	r.unwritten = false
	return l.record.write(r.c.dir.Path())
}

// launch sees to it that the clients that wait miss nothing: a short program has ended
// before anybody could look.
func (l *life) launch(r *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.launching = r
	for _, a := range l.waiting {
		a.place(r)
	}
}

// begin starts what goes on beside the program. The caller holds mu.
func (r *run) begin() {
	r.streams.started()
	if f, ok := r.sb.(sandbox.Freezer); ok && r.watch != nil {
		r.watch.SetBrake(f)
	}
	if r.control != nil {
		r.life.engine.residents.wg.Go(func() { r.serveControl() })
	}
	if r.watch != nil {
		context.AfterFunc(r.watch.Context(), func() { r.overBudget() })
	}
	r.health = r.watchHealth()
}

// overBudget ends a program that has filled the store.
func (r *run) overBudget() {
	select {
	case <-r.ended:
	default:
		_ = r.sb.Signal(unix.SIGKILL) // it may have ended meanwhile
	}
}

// launch prepares all that the container needs and starts its program.
func (r *run) launch(ctx context.Context) error {
	c := r.c
	if err := c.openRoot(ctx); err != nil {
		return err
	}
	if err := c.openVolumes(ctx); err != nil {
		return err
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	q, err := c.residentRequest(ctx, r)
	if err != nil {
		return err
	}
	if r.streams, err = c.openStreams(q); err != nil {
		return err
	}
	q.Hold, q.Drain = append(q.Hold, r.streams.hold...), r.streams.drain
	if r.control, err = c.listen(); err != nil {
		return err
	}
	if r.watch, err = c.engine.Store.Watch(ctx, c.dir.Path()); err != nil {
		return err
	}
	if err := failpoint.Hit("engine.start.start"); err != nil {
		return err
	}
	r.life.launch(r)
	if r.sb, err = c.engine.Exec.Start(context.WithoutCancel(ctx), q); err != nil {
		if errors.Is(err, os.ErrProcessDone) { // the one that it joins has ended meanwhile
			return conflict("cannot join namespaces of a non running container: %v", err)
		}
		return err
	}
	r.streams.follow(r.sb)
	r.plug()
	for _, m := range append(specMounts(q), q.Mounts...) {
		r.targets = append(r.targets, strings.Trim(path.Clean("/"+m.Target), "/"))
	}
	if c.request.TTY && c.request.Console != (Size{}) {
		_ = r.sb.Resize(c.request.Console.Rows, c.request.Console.Cols) // a courtesy
	}
	return nil
}

// specMounts are the mounts of the specification, as those of the request are.
func specMounts(q *sandbox.Request) (out []oci.Mount) {
	for _, m := range q.Spec.Mounts {
		out = append(out, oci.Mount{Target: m.Destination})
	}
	return out
}

// notStarted undoes what launch did, and keeps why.
func (l *life) notStarted(r *run, cause error) error {
	errs := []error{cause}
	ctx := context.Background()
	if r.sb != nil {
		errs = append(errs, kill(ctx, r.sb))
	}
	if r.streams != nil {
		errs = append(errs, r.streams.close())
	}
	errs = append(errs, r.release(ctx))
	code := 128
	var exec *sandbox.ExecError
	if errors.As(cause, &exec) {
		code = exec.Code
	}
	l.mu.Lock()
	next := l.record
	next.ExitCode, next.Error, next.Pid = code, cause.Error(), 0
	if next.State == stateRestarting || next.State == stateRunning {
		next.State = stateExited
	}
	next.Uppers = r.c.record.Uppers
	r.c.record = next
	errs = append(errs, r.c.writeExit(), next.write(r.c.dir.Path()))
	l.record, l.code, l.launching = next, code, nil
	for _, a := range l.waiting {
		a.end()
	}
	l.waiting = nil
	l.exits++
	l.notify()
	l.mu.Unlock()
	errs = append(errs, r.c.finish(false))
	close(r.ended)
	l.engine.containerEvent(&next, "die", map[string]string{"exitCode": fmt.Sprint(code)})
	if next.Remove {
		errs = append(errs, l.removeItself(ctx))
	}
	return errors.Join(errs...)
}

// openRoot opens the image's trees and prepares the root file system on top of what
// earlier runs have written.
func (c *container) openRoot(ctx context.Context) (err error) {
	if c.trees, err = c.engine.Images.Trees(ctx, c.image.Layers, image.TreeOptions{}); err != nil {
		return err
	}
	if err := c.nextUpper(ctx); err != nil {
		return err
	}
	if c.view, err = tree.Stack(append(c.record.own(c.dir.Path()), c.dirs()...)); err != nil {
		return fmt.Errorf("read layers of %s: %w", c.image, err)
	}
	var stack []snapshot.Tree
	for _, t := range c.trees {
		stack = append(stack, t)
	}
	for _, u := range c.record.Uppers[:len(c.record.Uppers)-1] {
		stack = append(stack, upperTree(filepath.Join(c.dir.Path(), u)))
	}
	c.active, err = c.engine.Driver.Prepare(ctx, stack, c.draft())
	return err
}

// residentRequest says what to run and in what.
func (c *container) residentRequest(ctx context.Context, r *run) (*sandbox.Request, error) {
	q, _, err := c.sandboxRequest(ctx, Streams{Warn: func(w string) { r.life.complain(errors.New(w)) }})
	if err != nil {
		return nil, err
	}
	q.Stdout, q.Stderr = nil, nil
	if err := c.shareNamespaces(ctx, q, r); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.dir.Path(), sandboxDir)
	if err := sys.RemoveTree(dir); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if r.lasting = c.engine.lasting(); r.lasting {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		q.Detach = dir
	}
	return q, nil
}

// lasting says that containers can outlive this process.
func (e *Engine) lasting() bool {
	_, adopts := e.Exec.(sandbox.Adopter)
	_, continues := e.Driver.(snapshot.Continuer)
	return adopts && continues
}
