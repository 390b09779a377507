package ops

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// A mergeOp stacks its inputs. The layers of each input describe changes to
// whatever lies below, whiteouts included, so the concatenation of the stacks
// is the merge, and no file is touched.
type mergeOp struct {
	env *Env
	v   *llb.Vertex
	op  *pb.MergeOp
}

func newMergeOp(env *Env, v *llb.Vertex) (solver.Op, error) {
	op := v.Op.GetMerge()
	if op == nil {
		return nil, fmt.Errorf("merge: no operation: %w", errdefs.ErrInvalidArgument)
	}
	for i, in := range op.Inputs {
		if in.Input < 0 || in.Input >= int64(len(v.Inputs)) {
			return nil, fmt.Errorf("merge input %d: %d of %d: %w", i, in.Input, len(v.Inputs), errdefs.ErrInvalidArgument)
		}
	}
	return &mergeOp{env: env, v: v, op: op}, nil
}

// CacheMap names the merge; it is repeated rather than recorded, since the
// record would be longer than the work.
func (m *mergeOp) CacheMap(context.Context, progress.Sink) (*solver.CacheMap, error) {
	d, err := jsonDigest(struct {
		Type  string
		Merge *pb.MergeOp
	}{"buildkit.merge.v0", m.op})
	if err != nil {
		return nil, err
	}
	return &solver.CacheMap{Digest: d, NoRecord: true, Inputs: make([]solver.InputKey, len(m.v.Inputs))}, nil
}

// Exec concatenates the stacks of the inputs.
func (m *mergeOp) Exec(ctx context.Context, inputs []solver.Result, _ progress.Sink) ([]solver.Result, error) {
	var refs []*Ref
	for _, in := range m.op.Inputs {
		r, err := asRef(inputs[in.Input])
		if err != nil {
			return nil, err
		}
		if r != nil {
			refs = append(refs, r)
		}
	}
	out, err := m.env.merge(ctx, refs, m.v.Digest)
	if err != nil {
		return nil, err
	}
	return []solver.Result{out}, nil
}

// merge returns a new Ref of all layers of refs, the first at the bottom. A
// layer may appear twice, as in an image; whoever mounts the stack leaves out
// the lower one.
func (e *Env) merge(ctx context.Context, refs []*Ref, vertex oci.Digest) (*Ref, error) {
	var layers []image.Layer
	var leases []*lease
	for _, r := range refs {
		if err := r.settle(ctx); err != nil {
			for _, ls := range leases {
				err = errors.Join(err, ls.close())
			}
			return nil, err
		}
		r.mu.Lock()
		layers = append(layers, r.layers...)
		for _, ls := range r.leases {
			leases = append(leases, ls.share())
		}
		r.mu.Unlock()
	}
	out := e.newRef(nil, vertex)
	out.layers, out.leases = layers, leases
	out.id = stackID(layers)
	return out, nil
}
