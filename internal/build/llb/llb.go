// Package llb reads LLB, BuildKit's low-level definition of a build, and
// checks it before anything is done with it.
//
// A definition comes from a frontend or from a client and is not trusted: its
// size, count and depth are bounded, an operation names its inputs by digest,
// so that a cycle cannot be written down, and whatever this version does not
// know, be it an operation, a field or a capability, is an error instead of a
// step that silently does something else.
//
// The format is github.com/moby/buildkit/solver/pb (ops.proto).
package llb

import (
	"github.com/moby/buildkit/solver/pb"

	"den/internal/oci"
)

// A Vertex is one checked operation. Vertices of one definition are shared:
// equal digests are the same pointer.
type Vertex struct {
	// Digest is that of the marshalled operation. It may contain session
	// identifiers, so it names a vertex inside one build only and is no cache
	// key.
	Digest oci.Digest
	// Op is the operation; exactly one of source, exec, file or merge. Its
	// Platform is never nil, and is normalized.
	Op *pb.Op
	// Meta is never nil.
	Meta *pb.OpMetadata
	// Inputs is parallel to Op.Inputs; every edge has a vertex.
	Inputs []Edge
	// Name is what BuildKit shows: the frontend's own name, or one made from
	// the operation.
	Name string
}

// An Edge is one output of a vertex. The zero Edge is the empty file system.
type Edge struct {
	Vertex *Vertex
	Index  int
}

// Outputs returns how many outputs v has.
func (v *Vertex) Outputs() int { return outputs(v.Op) }

func outputs(op *pb.Op) int {
	n := 0
	switch o := op.Op.(type) {
	case *pb.Op_Exec:
		for _, m := range o.Exec.Mounts {
			// BuildKit's client leaves 0 in the output of secrets.
			if m.MountType == pb.MountType_BIND {
				n = max(n, int(m.Output)+1)
			}
		}
	case *pb.Op_File:
		for _, a := range o.File.Actions {
			n = max(n, int(a.Output)+1)
		}
	default:
		n = 1
	}
	return n
}
