package ops

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"golang.org/x/sys/unix"

	"den/internal/build/solver"
	"den/internal/failpoint"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
)

// A step is one run of a command: what was made for it, to be undone in
// reverse by close.
type step struct {
	*execOp
	sink   progress.Sink
	inputs []*Ref

	root     oci.Mount
	rootRef  *Ref                // nil is scratch
	wrote    func(layer.Applied) // what became of the root; nil where nothing is kept of it
	readonly bool
	mounts   []oci.Mount // without the root, parents first
	shmBytes int64       // of /dev/shm, where the build says
	results  []stepResult
	started  []func() error // undone once the payload runs
	written  []string       // directories of the store that the payload may fill

	scratchDir   string
	scratchFiles int

	closers []func() error
}

// A stepResult is what becomes one output of the op.
type stepResult struct {
	ref   *Ref // an input that passes through, or
	layer *writable
}

// A writable is a stack of layers with a draft on top.
type writable struct {
	below  *Ref // nil is scratch
	draft  *store.Draft
	active *snapshot.Active
	wrote  *layer.Applied // what the sandbox knows that it left; nil if it does not
}

// onClose has f called when the step is over, the last one first.
func (s *step) onClose(f func() error) { s.closers = append(s.closers, f) }

func (s *step) close() error {
	err := s.afterStart()
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	s.closers = nil
	return err
}

// afterStart removes what only mounting needs: the names of secrets and of
// files that the sandbox has mounted by now.
func (s *step) afterStart() error {
	var errs []error
	for _, f := range s.started {
		errs = append(errs, f())
	}
	s.started = nil
	return errors.Join(errs...)
}

// newWritable puts a draft on top of r.
func (s *step) newWritable(ctx context.Context, r *Ref) (*writable, error) {
	stack, err := stackOf(ctx, r)
	if err != nil {
		return nil, err
	}
	d, err := s.env.Store.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	s.onClose(d.Close)
	s.written = append(s.written, filepath.Dir(d.FS()))
	a, err := s.env.Driver.Prepare(ctx, stack, d)
	if err != nil {
		return nil, err
	}
	s.onClose(a.Close)
	return &writable{below: r, draft: d, active: a}, nil
}

// stackOf are the trees of r, bottom first, for a snapshot driver. A layer that
// occurs twice is left out where it is lower, since the upper one overrides
// all that it holds, and the kernel refuses one directory in two places.
func stackOf(ctx context.Context, r *Ref) ([]snapshot.Tree, error) {
	if r == nil {
		return nil, nil
	}
	trees, err := r.Trees(ctx)
	if err != nil {
		return nil, err
	}
	last := make(map[oci.Digest]int, len(trees))
	for i, t := range trees {
		last[t.DiffID()] = i
	}
	out := make([]snapshot.Tree, 0, len(trees))
	for i, t := range trees {
		if last[t.DiffID()] == i {
			out = append(out, t)
		}
	}
	return out, nil
}

// run starts the command and waits for its end.
func (s *step) run(ctx context.Context) error {
	stdout := newStepLog(s.sink, s.v.Digest, 1)
	stderr := newStepLog(s.sink, s.v.Digest, 2)
	req, err := s.request(ctx)
	if err != nil {
		return err
	}
	req.Stdout, req.Stderr = stdout, stderr
	if err := failpoint.Hit("ops.exec.start"); err != nil {
		return err
	}
	watch, err := s.env.Store.Watch(ctx, s.written...)
	if err != nil {
		return s.failed(ctx, err)
	}
	ctx = watch.Context()
	sb, err := s.env.Exec.Start(ctx, req)
	if err != nil {
		return errors.Join(s.failed(ctx, startError(err)), watch.Stop())
	}
	if f, ok := sb.(sandbox.Freezer); ok {
		watch.SetBrake(f)
	}
	err = s.afterStart()
	// ctx kills the payload; its end is waited for all the same, or its
	// mounts would still be there when the layers' leases go.
	exit, waitErr := sb.Wait(context.WithoutCancel(ctx))
	full := watch.Stop()
	if err = errors.Join(err, waitErr); err != nil {
		return fmt.Errorf("run %s: %w", s.v.Name, err)
	}
	if err := s.failed(ctx, s.exitError(exit)); err != nil {
		stdout.flushTail()
		stderr.flushTail()
		return err
	}
	return full
}

// startError gives an error that is the program's own the exit code that it
// would have in a shell.
func startError(err error) error {
	var e *sandbox.ExecError
	if !errors.As(err, &e) {
		return err
	}
	return &gwpb.ExitError{ExitCode: uint32(e.Code), Err: fmt.Errorf("exit code: %d: %w", e.Code, err)}
}

// exitError is nil if the command ended as the definition expects.
func (s *step) exitError(exit sandbox.Exit) error {
	codes := s.op.Meta.ValidExitCodes
	ok := codes == nil && exit.Code == 0
	for _, c := range codes {
		ok = ok || int(c) == exit.Code
	}
	if ok {
		return nil
	}
	e := &gwpb.ExitError{ExitCode: uint32(exit.Code)}
	switch {
	case exit.OOMKilled:
		// BuildKit's words for a step that the kernel killed for its memory.
		e.Err = fmt.Errorf("exit code: %d: %w", exit.Code, unix.ENOMEM)
	case s.env.Store.DiskFull():
		// The step's files are still there. It is tried again if some cache can go.
		e.Err = fmt.Errorf("exit code: %d: the disk of the store is full: %w", exit.Code, unix.ENOSPC)
	}
	return e
}

// failed words the error as BuildKit's clients expect it; nil stays nil.
func (s *step) failed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return fmt.Errorf("process %q did not complete successfully: %w", strings.Join(s.op.Meta.Args, " "), err)
}

// commit makes the results: a layer for each writable mount with an output.
func (s *step) commit(ctx context.Context) (_ []solver.Result, err error) {
	out := make([]solver.Result, 0, len(s.results))
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(out))
		}
	}()
	for _, res := range s.results {
		r := res.ref
		if r != nil {
			r = r.clone()
		} else if r, err = s.commitLayer(ctx, res.layer); err != nil {
			return nil, fmt.Errorf("commit %s: %w", s.v.Name, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (s *step) commitLayer(ctx context.Context, w *writable) (*Ref, error) {
	if err := s.env.Driver.Changes(ctx, w.active); err != nil {
		return nil, err
	}
	applied := w.wrote
	if applied == nil {
		walked, err := snapshot.Commit(ctx, w.active)
		if err != nil {
			return nil, err
		}
		applied = &walked
	}
	if err := w.active.Close(); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("ops.exec.publish"); err != nil {
		return nil, err
	}
	return s.env.publish(ctx, w.below, w.draft, *applied, s.v.Digest)
}
