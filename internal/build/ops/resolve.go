package ops

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
)

// NewResolver makes the operations of a definition's vertices.
func NewResolver(env *Env) solver.Resolver[*llb.Vertex] {
	return func(v *llb.Vertex) (solver.Op, error) {
		op, err := resolve(env, v)
		if err != nil {
			return nil, err
		}
		switch op := op.(type) {
		case *execOp:
			return refusedOp{&spaceOp{op, env}, op}, nil
		case *imageOp:
			return unseenOp{&spaceOp{op, env}, op}, nil
		}
		return &spaceOp{op, env}, nil
	}
}

// A refusedOp and an unseenOp say what the operation within knows before anything is executed.
type (
	refusedOp struct {
		*spaceOp
		solver.Refuser
	}
	unseenOp struct {
		*spaceOp
		solver.Fixture
	}
)

// A spaceOp is an operation that is tried once more when it failed for a full
// disk and the store could give up some cache.
type spaceOp struct {
	solver.Op
	env *Env
}

func (o *spaceOp) Exec(ctx context.Context, inputs []solver.Result, sink progress.Sink) (out []solver.Result, err error) {
	err = o.env.Store.RetryFull(ctx, func() error {
		out, err = o.Op.Exec(ctx, inputs, sink)
		return err
	})
	return out, err
}

func resolve(env *Env, v *llb.Vertex) (solver.Op, error) {
	switch op := v.Op.Op.(type) {
	case *pb.Op_Exec:
		return newExecOp(env, v)
	case *pb.Op_File:
		return newFileOp(env, v)
	case *pb.Op_Merge:
		return newMergeOp(env, v)
	case *pb.Op_Source:
		return newSourceOp(env, v)
	case *pb.Op_Diff:
		return nil, unsupported("the DiffOp of raw LLB")
	case *pb.Op_Build:
		return nil, unsupported("the BuildOp of raw LLB")
	case *pb.Op_Passthrough:
		return nil, unsupported("the PassthroughOp of raw LLB")
	default:
		return nil, unsupported(fmt.Sprintf("operation %T", op))
	}
}

// newSourceOp chooses the source by the scheme of its identifier.
func newSourceOp(env *Env, v *llb.Vertex) (solver.Op, error) {
	id := v.Op.GetSource().GetIdentifier()
	scheme, rest, ok := strings.Cut(id, "://")
	if !ok {
		return nil, fmt.Errorf("source %.200q: no scheme: %w", id, errdefs.ErrInvalidArgument)
	}
	switch scheme {
	case "local":
		return newLocalOp(env, v)
	case "docker-image":
		return newImageOp(env, v, rest)
	case "oci-layout":
		return newLayoutOp(env, v, rest)
	case "http", "https":
		return newHTTPOp(env, v, id)
	case "git":
		return newGitOp(env, v, rest)
	case "docker-image+blob", "oci-layout+blob":
		return nil, unsupported(scheme + ":// sources")
	default:
		return nil, fmt.Errorf("source %.200q: unknown scheme %q: %w", id, scheme, errdefs.ErrInvalidArgument)
	}
}

// sourceKey is BuildKit's cache key of a source that names its own content.
func sourceKey(name string) oci.Digest {
	return digest.FromString("buildkit.source.v0:" + name)
}

func unsupported(what string) error {
	return fmt.Errorf("%s: den does not support it: %w", what, errdefs.ErrNotImplemented)
}
