package llb

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// The bounds of a definition. A Dockerfile has at most 16 MiB, and heredocs
// put its text into operations, more than once at worst.
const (
	maxBytes  = 128 << 20
	maxOps    = 50_000
	maxInputs = 10_000
	maxDepth  = 64 // nesting of messages inside one operation
)

// Decode checks def and returns the edge that its terminal operation points
// to. An empty definition is the zero Edge, the empty file system. Errors are
// errdefs.ErrInvalidArgument, or errdefs.ErrNotImplemented for what den does
// not execute.
func Decode(def *pb.Definition) (Edge, error) {
	if def == nil || len(def.Def) == 0 {
		return Edge{}, nil
	}
	e, err := decode(def)
	if err == nil {
		return e, nil
	}
	var class error = errdefs.ErrInvalidArgument
	if errdefs.IsNotImplemented(err) {
		class = errdefs.ErrNotImplemented
	}
	return Edge{}, &definitionError{class, err}
}

// definitionError keeps the class of an error out of its text.
type definitionError struct{ class, err error }

func (e *definitionError) Error() string   { return "build definition: " + e.err.Error() }
func (e *definitionError) Unwrap() []error { return []error{e.class, e.err} }

// A decoder turns the operations of one definition into vertices.
type decoder struct {
	def      *pb.Definition
	ops      map[oci.Digest]*pb.Op
	vertices map[oci.Digest]*Vertex
	caps     capSet
}

func decode(def *pb.Definition) (Edge, error) {
	d := &decoder{
		def:      def,
		ops:      make(map[oci.Digest]*pb.Op, len(def.Def)),
		vertices: make(map[oci.Digest]*Vertex, len(def.Def)),
		caps:     newCapSet(),
	}
	last, err := d.read()
	if err != nil {
		return Edge{}, err
	}
	if err := checkSources(def.Source); err != nil {
		return Edge{}, err
	}
	terminal := d.ops[last]
	if terminal.Op != nil {
		return Edge{}, errors.New("the last operation is not a terminal one")
	}
	if len(terminal.Inputs) != 1 {
		return Edge{}, fmt.Errorf("the terminal operation has %d inputs, want 1", len(terminal.Inputs))
	}
	root := oci.Digest(terminal.Inputs[0].Digest)
	if err := d.build(root); err != nil {
		return Edge{}, err
	}
	return d.edge(terminal.Inputs[0])
}

// read unmarshals every operation and returns the digest of the last.
func (d *decoder) read() (last oci.Digest, err error) {
	if len(d.def.Def) > maxOps {
		return "", fmt.Errorf("%d operations, at most %d are allowed", len(d.def.Def), maxOps)
	}
	total := 0
	for i, raw := range d.def.Def {
		if total += len(raw); total > maxBytes {
			return "", fmt.Errorf("more than %d MiB: %w", maxBytes>>20, oci.ErrTooLarge)
		}
		op := new(pb.Op)
		if err := op.Unmarshal(raw); err != nil {
			return "", fmt.Errorf("operation %d: %w", i, err)
		}
		if err := checkKnown(op.ProtoReflect(), 0); err != nil {
			return "", fmt.Errorf("operation %d: %w", i, err)
		}
		if len(op.Inputs) > maxInputs {
			return "", fmt.Errorf("operation %d: %d inputs, at most %d are allowed", i, len(op.Inputs), maxInputs)
		}
		last = digest.FromBytes(raw)
		d.ops[last] = op
	}
	return last, nil
}

// build makes the vertices below root, inputs first, without recursion: a
// definition may be a chain of any length.
func (d *decoder) build(root oci.Digest) error {
	const open, done = 1, 2
	state := make(map[oci.Digest]int, len(d.ops))
	stack := []oci.Digest{root}
	for len(stack) > 0 {
		dgst := stack[len(stack)-1]
		if state[dgst] == done {
			stack = stack[:len(stack)-1]
			continue
		}
		op := d.ops[dgst]
		if op == nil {
			return fmt.Errorf("input %.80q is missing", string(dgst))
		}
		if state[dgst] == 0 {
			state[dgst] = open
			for _, in := range op.Inputs {
				// Not reachable short of a broken hash; an endless loop would
				// be the price.
				if state[oci.Digest(in.Digest)] == open {
					return fmt.Errorf("input %s is part of a cycle", in.Digest)
				}
				stack = append(stack, oci.Digest(in.Digest))
			}
			continue
		}
		stack = stack[:len(stack)-1]
		v, err := d.vertex(dgst, op)
		if err != nil {
			return err
		}
		d.vertices[dgst], state[dgst] = v, done
	}
	return nil
}

func (d *decoder) vertex(dgst oci.Digest, op *pb.Op) (*Vertex, error) {
	v := &Vertex{Digest: dgst, Op: op, Meta: d.def.Metadata[string(dgst)]}
	if v.Meta == nil {
		v.Meta = &pb.OpMetadata{}
	}
	fail := func(err error) (*Vertex, error) {
		return nil, fmt.Errorf("vertex %s: %w", title(dgst, v.Meta), err)
	}
	if err := checkKnown(v.Meta.ProtoReflect(), 0); err != nil {
		return fail(err)
	}
	for c := range v.Meta.Caps {
		if err := d.caps.check(c); err != nil {
			return fail(err)
		}
	}
	if err := checkOp(op); err != nil {
		return fail(err)
	}
	v.Inputs = make([]Edge, len(op.Inputs))
	for i, in := range op.Inputs {
		e, err := d.edge(in)
		if err != nil {
			return fail(err)
		}
		v.Inputs[i] = e
	}
	op.Platform = normalize(op.Platform)
	v.Name = name(v)
	return v, nil
}

func (d *decoder) edge(in *pb.Input) (Edge, error) {
	v := d.vertices[oci.Digest(in.Digest)]
	if v == nil {
		return Edge{}, fmt.Errorf("input %.80q is missing", in.Digest)
	}
	if n := v.Outputs(); in.Index < 0 || in.Index >= int64(n) {
		return Edge{}, fmt.Errorf("output %d of %s is wanted, which has %d", in.Index, in.Digest, n)
	}
	return Edge{Vertex: v, Index: int(in.Index)}, nil
}

// normalize makes platforms comparable, as BuildKit does before it computes
// keys; no platform is the machine's own.
func normalize(p *pb.Platform) *pb.Platform {
	s := platforms.DefaultSpec()
	if p != nil {
		s = p.Spec()
	}
	if s.OS == "" {
		s.OS = runtime.GOOS
	}
	s = platforms.Normalize(s)
	return pb.PlatformFromSpec(s)
}

// checkSources checks the map from vertices to places in the Dockerfile.
func checkSources(src *pb.Source) error {
	if src == nil {
		return nil
	}
	for dgst, locs := range src.Locations {
		for _, loc := range locs.GetLocations() {
			if loc == nil || loc.SourceIndex < 0 || int(loc.SourceIndex) >= len(src.Infos) {
				return fmt.Errorf("source location of %.80q names no source", dgst)
			}
		}
	}
	return nil
}
