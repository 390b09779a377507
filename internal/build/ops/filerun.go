package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/solver"
	"den/internal/progress"
	"den/internal/store"
)

// fileRun is one execution of a fileOp. Results are numbered as in the
// definition: inputs first, then one for each action.
type fileRun struct {
	*fileOp
	refs    []*Ref // inputs; nil is the empty tree
	now     time.Time
	uses    map[int64]int
	states  map[int64]*fileState
	closers []func() error
}

// fileState is what an input or an action made.
type fileState struct {
	// ref is a result that is layers already.
	ref *Ref
	// tree is one that is still changed in memory, by at most one later
	// action, on top of base.
	tree *fileTree
	base *Ref
	// place is where tree's layer will be.
	place *filePlace

	busy bool
	view fileView // of ref, once opened
}

// Exec does the actions that outputs depend on.
func (f *fileOp) Exec(ctx context.Context, inputs []solver.Result, _ progress.Sink) (_ []solver.Result, err error) {
	r := &fileRun{fileOp: f, now: time.Now(), uses: map[int64]int{}, states: map[int64]*fileState{}}
	if e := f.env.SourceDateEpoch; e != nil && e.Before(r.now) {
		r.now = *e
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for i, in := range inputs {
		ref, err := asRef(in)
		if err != nil {
			return nil, err
		}
		r.refs = append(r.refs, ref)
		r.states[int64(i)] = &fileState{ref: ref}
	}
	outputs := r.count()
	out := make([]solver.Result, len(outputs))
	for i, n := range outputs {
		s, err := r.result(ctx, n)
		if err == nil {
			out[i], err = s.ref.clone(), nil
		}
		if err != nil {
			return nil, errors.Join(err, closeAll(out[:i]))
		}
	}
	return out, nil
}

// count finds out how often each result is used and which are outputs.
func (r *fileRun) count() []int64 {
	var outputs []int64
	for i, a := range r.op.Actions {
		r.uses[a.Input]++
		r.uses[a.SecondaryInput]++
		if a.Output == -1 {
			continue
		}
		n := int64(r.inputs + i)
		r.uses[n] += 2 // an output is a layer of its own
		for int64(len(outputs)) <= a.Output {
			outputs = append(outputs, 0)
		}
		outputs[a.Output] = n
	}
	for _, a := range r.op.Actions {
		for _, u := range actionUsers(a) {
			r.uses[u.byName.Input]++
		}
	}
	return outputs
}

func (r *fileRun) close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	return errors.Join(errs...)
}

// result returns what input or action n made; results with several users are
// layers, so that none changes what another sees.
func (r *fileRun) result(ctx context.Context, n int64) (*fileState, error) {
	if n == -1 {
		return &fileState{}, nil
	}
	if s := r.states[n]; s != nil {
		if s.busy {
			return nil, fmt.Errorf("file: action %d depends on itself: %w", n-int64(r.inputs), errdefs.ErrInvalidArgument)
		}
		return s, nil
	}
	s := &fileState{busy: true}
	r.states[n] = s
	a := r.op.Actions[n-int64(r.inputs)]
	if err := r.prepare(ctx, s, a); err != nil {
		return nil, err
	}
	if err := r.do(ctx, s, a); err != nil {
		return nil, err
	}
	if r.uses[n] > 1 {
		if err := r.commit(ctx, s); err != nil {
			return nil, err
		}
	}
	s.busy = false
	return s, nil
}

// prepare gives s a tree to change: that of the action's input.
func (r *fileRun) prepare(ctx context.Context, s *fileState, a *pb.FileAction) error {
	in, err := r.result(ctx, a.Input)
	if err != nil {
		return err
	}
	if in.tree != nil { // only ours
		s.tree, s.base, s.place = in.tree, in.base, in.place
		return nil
	}
	var below fileView
	if in.ref != nil {
		if below, err = r.viewOf(ctx, in); err != nil {
			return err
		}
	}
	s.tree, s.base, s.place = newFileTree(below, r.now), in.ref, r.newPlace()
	return nil
}

// view reads result n.
func (r *fileRun) view(ctx context.Context, n int64) (fileView, error) {
	s, err := r.result(ctx, n)
	switch {
	case err != nil:
		return nil, err
	case s.tree != nil:
		return s.tree, nil
	case s.ref == nil:
		return emptyView{}, nil
	}
	return r.viewOf(ctx, s)
}

// viewOf opens the layers of s once.
func (r *fileRun) viewOf(ctx context.Context, s *fileState) (fileView, error) {
	if s.view == nil {
		fs, done, err := s.ref.FS(ctx)
		if err != nil {
			return nil, err
		}
		r.closers = append(r.closers, func() error { done(); return nil })
		s.view = newTreeView(fs)
	}
	return s.view, nil
}

// do changes s's tree.
func (r *fileRun) do(ctx context.Context, s *fileState, a *pb.FileAction) error {
	owner, err := r.owner(ctx, a)
	if err != nil {
		return err
	}
	switch x := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		return s.tree.doMkdir(x.Mkdir, owner)
	case *pb.FileAction_Mkfile:
		return s.tree.doMkfile(x.Mkfile, owner)
	case *pb.FileAction_Symlink:
		return s.tree.doSymlink(x.Symlink, owner)
	case *pb.FileAction_Rm:
		return s.tree.doRm(x.Rm)
	case *pb.FileAction_Copy:
		src, err := r.view(ctx, a.SecondaryInput)
		if err != nil {
			return err
		}
		return s.tree.doCopy(ctx, x.Copy, src, owner, &s.place.spool)
	}
	return fmt.Errorf("file: action %T: %w", a.Action, errdefs.ErrNotImplemented)
}

func (r *fileRun) owner(ctx context.Context, a *pb.FileAction) (*fileOwner, error) {
	var users, groups fileView
	for _, u := range actionUsers(a) {
		v, err := r.view(ctx, u.byName.Input)
		if err != nil {
			return nil, err
		}
		if u.file == filePasswd {
			users = v
		} else {
			groups = v
		}
	}
	return readOwner(actionOwner(a), users, groups)
}

// filePlace is where a layer is made, in the store but not visible yet.
type filePlace struct {
	draft *store.Draft
	spool fileSpool
}

func (r *fileRun) newPlace() *filePlace {
	p := &filePlace{}
	p.spool.dir = func(ctx context.Context) (string, error) {
		d, err := r.draftOf(ctx, p)
		if err != nil {
			return "", err
		}
		return d.Work(), nil
	}
	r.closers = append(r.closers, p.spool.close)
	return p
}

func (r *fileRun) draftOf(ctx context.Context, p *filePlace) (*store.Draft, error) {
	if p.draft == nil {
		d, err := r.env.Store.NewDraft(ctx)
		if err != nil {
			return nil, err
		}
		p.draft = d
		r.closers = append(r.closers, d.Close)
	}
	return p.draft, nil
}
