package llb

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"
)

// define returns the definition that BuildKit's own client makes of a state.
func define(t testing.TB, st bkllb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

// add appends op to def and returns its digest.
func add(t testing.TB, def *pb.Definition, op *pb.Op) string {
	t.Helper()
	raw, err := op.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	def.Def = append(def.Def, raw)
	return digest.FromBytes(raw).String()
}

func source(id string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id}}}
}

func terminal(in string) *pb.Op {
	return &pb.Op{Inputs: []*pb.Input{{Digest: in}}}
}

func TestDefinitionOfBuildKitsClientIsUnderstood(t *testing.T) {
	base := bkllb.Image("docker.io/library/alpine:latest", bkllb.LinuxArm64)
	run := base.Run(bkllb.Args([]string{"/bin/sh", "-c", "make"}), bkllb.AddMount("/cache", bkllb.Scratch(), bkllb.AsPersistentCacheDir("c", bkllb.CacheMountLocked)), bkllb.AddSecret("/s"), bkllb.AddSSHSocket()).Root()
	files := bkllb.Scratch().File(bkllb.Mkdir("/a", 0o755).Mkfile("/a/b", 0o644, []byte("x")))
	st := bkllb.Merge([]bkllb.State{run, files}).File(bkllb.Copy(run, "/out", "/in"), bkllb.WithCustomName("[2/2] COPY"))
	e, err := Decode(define(t, st))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	seen := map[*Vertex]bool{}
	var walk func(v *Vertex)
	walk = func(v *Vertex) {
		if seen[v] {
			return
		}
		seen[v] = true
		for _, in := range v.Inputs {
			walk(in.Vertex)
		}
		names = append(names, v.Name+" "+v.Op.Platform.Architecture)
	}
	walk(e.Vertex)
	host := normalize(nil).Architecture
	want := []string{
		"docker-image://docker.io/library/alpine:latest arm64",
		"/bin/sh -c make arm64",
		"mkdir /a, mkfile /a/b " + host,
		"merge (/bin/sh -c make, mkdir /a, mkfile /a/b) " + host,
		"[2/2] COPY " + host,
	}
	if d := cmp.Diff(want, names); d != "" {
		t.Errorf("vertices (-want +got):\n%s", d)
	}
}

func TestEmptyDefinitionIsTheEmptyFileSystem(t *testing.T) {
	for _, def := range []*pb.Definition{nil, {}, define(t, bkllb.Scratch())} {
		e, err := Decode(def)
		if err != nil || e.Vertex != nil {
			t.Errorf("%v: %v, %v", def, e, err)
		}
	}
}

func TestBadDefinitionsAreRefused(t *testing.T) {
	exec := func(change func(*pb.ExecOp)) *pb.Op {
		o := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Input: -1, Dest: "/"}}}
		change(o)
		return &pb.Op{Op: &pb.Op_Exec{Exec: o}}
	}
	file := func(actions ...*pb.FileAction) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}}
	}
	mkdir := &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/a"}}
	for _, c := range []struct {
		name  string
		op    *pb.Op
		text  string
		class func(error) bool
	}{
		{"no kind", &pb.Op{}, "without a kind", nil},
		{"diff", &pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}, "DiffOp", errdefs.IsNotImplemented},
		{"build", &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{}}}, "BuildOp", errdefs.IsNotImplemented},
		{"passthrough", &pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{}}}, "PassthroughOp", errdefs.IsNotImplemented},
		{"source without scheme", source("alpine"), "no scheme", nil},
		{"missing input", &pb.Op{Inputs: []*pb.Input{{Digest: "sha256:gone"}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}, "is missing", nil},
		{"merge of other count", &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}, "merge of 1 with 0", nil},
		{"exec without root", exec(func(o *pb.ExecOp) { o.Mounts[0].Dest = "/x" }), "without a root", nil},
		{"exec without arguments", exec(func(o *pb.ExecOp) { o.Meta.Args = nil }), "without arguments", nil},
		{"mount of no input", exec(func(o *pb.ExecOp) { o.Mounts[0].Input = 3 }), "takes input 3 of 0", nil},
		{"huge output", exec(func(o *pb.ExecOp) { o.Mounts[0].Output = 1 << 40 }), "out of range", nil},
		{"cache as a root", exec(func(o *pb.ExecOp) { o.Mounts[0].MountType = pb.MountType_CACHE }), "without a root", nil},
		{"output with a hole", exec(func(o *pb.ExecOp) {
			o.Mounts[0].Output = -1
			o.Mounts = append(o.Mounts, &pb.Mount{Input: -1, Output: 1})
		}), "output 0 is missing", nil},
		{"same output twice", exec(func(o *pb.ExecOp) { o.Mounts = append(o.Mounts, o.Mounts[0]) }), "made twice", nil},
		{"unknown enum", exec(func(o *pb.ExecOp) { o.Network = 9 }), "does not know", errdefs.IsNotImplemented},
		{"device", exec(func(o *pb.ExecOp) { o.CdiDevices = []*pb.CDIDevice{{Name: "nvidia.com/gpu"}} }), "nvidia.com/gpu", errdefs.IsNotImplemented},
		{"file without actions", file(), "without actions", nil},
		{"empty action", file(&pb.FileAction{Input: -1, SecondaryInput: -1}), "is empty", nil},
		{"action that takes its own result", file(&pb.FileAction{Action: mkdir}), "takes inputs 0", nil},
		{"owner from nowhere", file(&pb.FileAction{Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
			Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "x", Input: 5}}}},
		}}}), "looked up in input 5", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			def := &pb.Definition{}
			add(t, def, terminal(add(t, def, c.op)))
			_, err := Decode(def)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error is %v, want %q", err, c.text)
			}
			class := c.class
			if class == nil {
				class = errdefs.IsInvalidArgument
			}
			if !class(err) {
				t.Errorf("%v has the wrong class", err)
			}
		})
	}
}

func TestOutputThatDoesNotExistIsRefused(t *testing.T) {
	for _, index := range []int64{-1, 1, 1 << 40} {
		def := &pb.Definition{}
		in := add(t, def, source("local://context"))
		add(t, def, &pb.Op{Inputs: []*pb.Input{{Digest: in, Index: index}}})
		if _, err := Decode(def); !errdefs.IsInvalidArgument(err) {
			t.Errorf("index %d: error is %v", index, err)
		}
	}
}

func TestUnknownFieldsAreRefusedAtAnyDepth(t *testing.T) {
	deep := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Input: -1, Dest: "/"}}}
	unknown := protowire.AppendTag(nil, 999, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, []byte("from the future"))
	deep.Mounts[0].ProtoReflect().SetUnknown(unknown)
	def := &pb.Definition{}
	add(t, def, terminal(add(t, def, &pb.Op{Op: &pb.Op_Exec{Exec: deep}})))
	if _, err := Decode(def); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "Mount has a field") {
		t.Errorf("error is %v", err)
	}

	def = &pb.Definition{}
	in := add(t, def, source("local://context"))
	add(t, def, terminal(in))
	md := &pb.OpMetadata{}
	md.ProtoReflect().SetUnknown(unknown)
	def.Metadata = map[string]*pb.OpMetadata{in: md}
	if _, err := Decode(def); !errdefs.IsNotImplemented(err) {
		t.Errorf("in metadata: error is %v", err)
	}
}

func TestCapabilitiesThatDenLacksAreRefused(t *testing.T) {
	for c, refused := range map[string]bool{"mergeop": false, "file.base": false, "diffop": true, "from.the.future": true} {
		def := &pb.Definition{}
		in := add(t, def, source("local://context"))
		add(t, def, terminal(in))
		def.Metadata = map[string]*pb.OpMetadata{in: {Caps: map[string]bool{c: true}}}
		if _, err := Decode(def); (err != nil) != refused || refused && !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: error is %v", c, err)
		}
	}
}

func TestSourceLocationsMustNameASource(t *testing.T) {
	def := define(t, bkllb.Local("context"))
	def.Source = &pb.Source{Locations: map[string]*pb.Locations{"x": {Locations: []*pb.Location{{SourceIndex: 1}}}}}
	if _, err := Decode(def); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
}

func TestLongChainsAndManyOperationsAreBounded(t *testing.T) {
	def := &pb.Definition{}
	in := add(t, def, source("local://context"))
	for i := range 20_000 {
		in = add(t, def, &pb.Op{Inputs: []*pb.Input{{Digest: in}}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
			SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: fmt.Sprint("/", i)}},
		}}}}})
	}
	add(t, def, terminal(in))
	if _, err := Decode(def); err != nil {
		t.Error(err)
	}
	for range maxOps {
		def.Def = append(def.Def, def.Def[0])
	}
	if _, err := Decode(def); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
}

func TestSharedInputsAreOneVertex(t *testing.T) {
	base := bkllb.Image("alpine")
	a := base.File(bkllb.Mkdir("/a", 0o755))
	b := base.File(bkllb.Mkdir("/b", 0o755))
	e, err := Decode(define(t, bkllb.Merge([]bkllb.State{a, b})))
	if err != nil {
		t.Fatal(err)
	}
	if in := e.Vertex.Inputs; in[0].Vertex.Inputs[0].Vertex != in[1].Vertex.Inputs[0].Vertex {
		t.Error("the base is two vertices")
	}
}

func FuzzDecode(f *testing.F) {
	base := bkllb.Image("alpine")
	run := base.Run(bkllb.Args([]string{"true"}), bkllb.AddMount("/m", base, bkllb.Readonly)).Root()
	for _, st := range []bkllb.State{
		bkllb.Local("context"), run, run.File(bkllb.Copy(base, "/a*", "/b", &bkllb.CopyInfo{AllowWildcard: true})),
		bkllb.Merge([]bkllb.State{run, base}), bkllb.Diff(base, run),
	} {
		raw, err := define(f, st).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		def := new(pb.Definition)
		if def.Unmarshal(raw) != nil {
			return
		}
		e, err := Decode(def)
		if err != nil || e.Vertex == nil {
			return
		}
		if e.Index >= e.Vertex.Outputs() || e.Vertex.Meta == nil || e.Vertex.Op.Platform == nil {
			t.Errorf("accepted an incomplete edge %+v", e)
		}
		for i, in := range e.Vertex.Inputs {
			if in.Vertex == nil || string(in.Vertex.Digest) != e.Vertex.Op.Inputs[i].Digest {
				t.Errorf("input %d is %v", i, in)
			}
		}
		again, err := Decode(def)
		if err != nil || !bytes.Equal([]byte(again.Vertex.Digest), []byte(e.Vertex.Digest)) {
			t.Errorf("second decode: %v, %v", again, err)
		}
	})
}
