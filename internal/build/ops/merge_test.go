package ops

import (
	"context"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// lazyRef is a Ref of layers that exist nowhere.
func lazyRef(env *Env, names ...string) *Ref {
	var layers []image.Layer
	for _, n := range names {
		layers = append(layers, image.Layer{DiffID: digest.FromString(n)})
	}
	return env.newRef(layers, "")
}

func TestMergeStacksWithoutTouchingAFile(t *testing.T) {
	env := &Env{} // no store: any access would panic
	v := &llb.Vertex{
		Op:     &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}},
		Inputs: make([]llb.Edge, 2),
	}
	op, err := newMergeOp(env, v)
	if err != nil {
		t.Fatal(err)
	}
	base, top := lazyRef(env, "base", "same"), lazyRef(env, "copied", "same")
	out, err := op.Exec(context.Background(), []solver.Result{base, top}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := oci.ChainID([]oci.Digest{
		digest.FromString("base"), digest.FromString("same"), digest.FromString("copied"), digest.FromString("same"),
	})
	if out[0].ID() != want {
		t.Errorf("ID %s, want the chain of all layers %s", out[0].ID(), want)
	}
	m, err := op.CacheMap(context.Background(), progress.Discard)
	if err != nil || len(m.Inputs) != 2 || !m.NoRecord {
		t.Errorf("cache map %+v, %v", m, err)
	}
}

func TestMergeOfUnknownInputIsRefused(t *testing.T) {
	v := &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 3}}}}}}
	if _, err := newMergeOp(&Env{}, v); err == nil {
		t.Error("no error")
	}
}
