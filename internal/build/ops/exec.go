package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sandbox"
)

// Names of the entitlements that a command may need, as BuildKit calls them.
const (
	entitleNetworkHost = "network.host"
	entitleInsecure    = "security.insecure"
)

// An execOp runs a command on top of a stack of layers. What the command
// changed there becomes one layer more; other writable mounts with an output
// become results of their own.
type execOp struct {
	env      *Env
	v        *llb.Vertex
	op       *pb.ExecOp
	platform oci.Platform
	outputs  int
}

func newExecOp(env *Env, v *llb.Vertex) (solver.Op, error) {
	op := v.Op.GetExec()
	if err := checkExec(op); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if err := env.checkEntitled(op); err != nil {
		return nil, err
	}
	n, err := countOutputs(op.Mounts)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return &execOp{env: env, v: v, op: op, platform: env.platformOf(v.Op.Platform), outputs: n}, nil
}

func checkExec(op *pb.ExecOp) error {
	switch {
	case op.GetMeta() == nil:
		return fmt.Errorf("no meta: %w", errdefs.ErrInvalidArgument)
	case len(op.Meta.Args) == 0:
		return fmt.Errorf("no arguments: %w", errdefs.ErrInvalidArgument)
	case !slices.ContainsFunc(op.Mounts, func(m *pb.Mount) bool { return m.Dest == pb.RootMount }):
		return fmt.Errorf("no root file system: %w", errdefs.ErrInvalidArgument)
	}
	for _, d := range op.CdiDevices {
		if !d.Optional {
			return fmt.Errorf("device %s: den has no CDI devices (RUN --device): %w", d.Name, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// checkEntitled refuses what the user did not allow on the command line.
func (e *Env) checkEntitled(op *pb.ExecOp) error {
	for _, need := range []struct {
		name string
		when bool
	}{
		{entitleNetworkHost, op.Network == pb.NetMode_HOST},
		{entitleInsecure, op.Security == pb.SecurityMode_INSECURE},
	} {
		if need.when && !e.allows(need.name) {
			return fmt.Errorf("%s is not allowed; allow it with --allow %s: %w", need.name, need.name, errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// countOutputs returns how many results the mounts make: their numbers are
// 0, 1, 2 and so on, each once. Mounts of other types than bind and cache make
// none, whatever number they have.
func countOutputs(mounts []*pb.Mount) (int, error) {
	var got []int64
	for _, m := range mounts {
		bindOrCache := m.MountType == pb.MountType_BIND || m.MountType == pb.MountType_CACHE
		if bindOrCache && m.Output != int64(pb.SkipOutput) {
			got = append(got, m.Output)
		}
	}
	slices.Sort(got)
	for i, n := range got {
		if n != int64(i) {
			return 0, fmt.Errorf("mount outputs %v: not numbered from 0: %w", got, errdefs.ErrInvalidArgument)
		}
	}
	return len(got), nil
}

// CacheMap is BuildKit's: the operation without what differs between runs, and
// of mounts that cannot be changed only the content that is mounted.
func (o *execOp) CacheMap(context.Context, progress.Sink) (*solver.CacheMap, error) {
	key, err := execKey(o.op, o.platform)
	if err != nil {
		return nil, err
	}
	uses, err := inputUses(o.op, len(o.v.Inputs))
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	cm := &solver.CacheMap{Digest: key, Inputs: make([]solver.InputKey, len(uses))}
	for i, use := range uses {
		cm.Inputs[i].Selector = use.selectorKey()
		if use.byContent {
			cm.Inputs[i].Content = o.env.contentOf(use.selectors())
		}
	}
	return cm, nil
}

// contentOf digests the selected part of a result.
func (e *Env) contentOf(sel []Selector) func(context.Context, solver.Result) (oci.Digest, error) {
	return func(ctx context.Context, res solver.Result) (oci.Digest, error) {
		r, err := asRef(res)
		if err != nil {
			return "", err
		}
		return contentHash(ctx, e, r, sel)
	}
}

// Exec runs the command and commits what it changed.
func (o *execOp) Exec(ctx context.Context, inputs []solver.Result, sink progress.Sink) (out []solver.Result, err error) {
	if err := o.env.canRun(ctx, o.platform); err != nil {
		return nil, err
	}
	s := &step{execOp: o, sink: sink}
	defer func() {
		if closeErr := s.close(); closeErr != nil {
			err = errors.Join(err, closeErr, closeAll(out))
			out = nil
		}
	}()
	if s.inputs, err = stepInputs(inputs, sink, o.v.Digest); err != nil {
		return nil, err
	}
	var expected sync.WaitGroup
	if e, ok := o.env.Exec.(sandbox.Expecter); ok {
		expected.Go(func() { e.Expect(ctx, networkOf(o.op)) }) // while layers are pulled and unpacked
	}
	err = s.prepare(ctx)
	expected.Wait()
	if err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	return s.commit(ctx)
}

// stepInputs are the results that a command is given. Layers that it waits for
// are shown as part of it, unless they belong to the vertex that named them.
func stepInputs(inputs []solver.Result, sink progress.Sink, vertex oci.Digest) ([]*Ref, error) {
	refs := make([]*Ref, len(inputs))
	for i, in := range inputs {
		r, err := asRef(in)
		if err != nil {
			return nil, err
		}
		if r != nil {
			r.reportTo(sink, vertex)
		}
		refs[i] = r
	}
	return refs, nil
}
