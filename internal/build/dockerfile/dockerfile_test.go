package dockerfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	fstypes "github.com/tonistiigi/fsutil/types"

	denllb "den/internal/build/llb"
	"den/internal/oci"
	"den/internal/progress"
)

// fake is a gateway whose sources all hold the same files.
type fake struct {
	files map[string]string
	sizes map[string]int64 // claimed by StatFile
	// container is the part of base images' configuration that containers get.
	container string

	mu       sync.Mutex
	solved   []denllb.Edge
	resolved []string
	warnings []progress.Warning
}

func (g *fake) Solve(_ context.Context, def *pb.Definition) (gwclient.Reference, error) {
	e, err := denllb.Decode(def)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.solved = append(g.solved, e)
	return &fakeRef{g, e, def}, nil
}

func (g *fake) ResolveImage(_ context.Context, name string, o sourceresolver.Opt) (*Resolved, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resolved = append(g.resolved, name+" "+o.LogName)
	if strings.Contains(name, "missing") {
		return nil, fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	container := g.container
	if container == "" {
		container = `{"Env":["PATH=/bin"]}`
	}
	cfg := []byte(`{"architecture":"amd64","os":"linux","config":` + container + `,"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`)
	name, _, _ = strings.Cut(name, "@")
	return &Resolved{Name: name + "@" + string(digest.FromString(name)), Digest: digest.FromString(name), Config: cfg}, nil
}

func (g *fake) ResolveSource(context.Context, *pb.SourceOp, sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	return nil, errdefs.ErrNotImplemented
}

func (g *fake) Warn(w progress.Warning) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.warnings = append(g.warnings, w)
}

type fakeRef struct {
	g   *fake
	e   denllb.Edge
	def *pb.Definition
}

func (r *fakeRef) ToState() (llb.State, error)    { return llb.Scratch(), nil }
func (r *fakeRef) Evaluate(context.Context) error { return nil }
func (r *fakeRef) ReadFile(_ context.Context, q gwclient.ReadRequest) ([]byte, error) {
	s, ok := r.g.files[path.Clean(q.Filename)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: q.Filename, Err: fs.ErrNotExist}
	}
	return []byte(s), nil
}
func (r *fakeRef) StatFile(_ context.Context, q gwclient.StatRequest) (*fstypes.Stat, error) {
	if n, ok := r.g.sizes[q.Path]; ok {
		return &fstypes.Stat{Path: q.Path, Size: n}, nil
	}
	s, ok := r.g.files[path.Clean(q.Path)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &fstypes.Stat{Path: q.Path, Size: int64(len(s))}, nil
}
func (r *fakeRef) ReadDir(context.Context, gwclient.ReadDirRequest) ([]*fstypes.Stat, error) {
	return nil, fs.ErrNotExist
}

func compile(t *testing.T, g *fake, opts ...string) (*Result, error) {
	t.Helper()
	req := Request{Options: map[string]string{}, SessionID: "s", Platform: oci.Platform{OS: "linux", Architecture: "amd64"}}
	for _, o := range opts {
		k, v, _ := strings.Cut(o, "=")
		req.Options[k] = v
	}
	return Compile(t.Context(), req, g)
}

func file(s string) *fake { return &fake{files: map[string]string{"Dockerfile": s}} }

// names lists the vertices of an image, inputs first.
func names(img Image) []string {
	var out []string
	seen := map[*denllb.Vertex]bool{}
	var walk func(v *denllb.Vertex)
	walk = func(v *denllb.Vertex) {
		if v == nil || seen[v] {
			return
		}
		seen[v] = true
		for _, in := range v.Inputs {
			walk(in.Vertex)
		}
		out = append(out, v.Name)
	}
	walk(img.Ref.(*fakeRef).e.Vertex)
	return out
}

func TestVerticesHaveTheNamesOfBuildKit(t *testing.T) {
	res, err := compile(t, file("FROM alpine AS base\nRUN make all\nFROM scratch\nCOPY --from=base /out /\nCOPY local /l\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"[base 1/2] FROM docker.io/library/alpine:latest@" + string(digest.FromString("docker.io/library/alpine:latest")),
		"[base 2/2] RUN make all",
		"[stage-1 1/2] COPY --from=base /out /",
		"[internal] load build context",
		"[stage-1 2/2] COPY local /l",
	}
	if d := cmp.Diff(want, names(res.Images[0])); d != "" {
		t.Errorf("vertices (-want +got):\n%s", d)
	}
	if res.Index || len(res.Images) != 1 || res.Images[0].ID != "linux/amd64" {
		t.Errorf("result is %+v", res)
	}
}

func TestDockerfileSyntaxIsBuiltIn(t *testing.T) {
	for _, c := range []struct{ line, opt string }{
		{"# syntax=docker/dockerfile:1\n", ""},
		{"# syntax=docker/dockerfile:1.7-labs\n", ""},
		{"# syntax=docker.io/docker/dockerfile-upstream:master@sha256:" + strings.Repeat("a", 64) + "\n", ""},
		{"", "build-arg:BUILDKIT_SYNTAX=docker/dockerfile:1"},
	} {
		g := file(c.line + "FROM scratch\nCOPY --link a /\n")
		var opts []string
		if c.opt != "" {
			opts = append(opts, c.opt)
		}
		res, err := compile(t, g, opts...)
		if err != nil || len(res.Images) != 1 {
			t.Errorf("%s%s: %v", c.line, c.opt, err)
		}
		if len(g.resolved) > 0 {
			t.Errorf("%s: %v was resolved", c.line, g.resolved)
		}
	}
}

func TestOtherFrontendsAreRefusedWhereTheyAreNamed(t *testing.T) {
	_, err := compile(t, file("# syntax=example.com/evil/dockerfile:1\nFROM scratch\n"))
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "example.com/evil/dockerfile:1") {
		t.Fatalf("error is %v", err)
	}
	if src := bkerrdefs.Sources(err); len(src) != 1 || src[0].Ranges[0].Start.Line != 1 {
		t.Errorf("source is %v", src)
	}
}

func TestLinkIsAMerge(t *testing.T) {
	res, err := compile(t, file("FROM alpine\nCOPY --link a /\n"))
	if err != nil {
		t.Fatal(err)
	}
	if v := res.Images[0].Ref.(*fakeRef).e.Vertex; v.Op.GetMerge() == nil {
		t.Errorf("the last vertex is %s", v.Name)
	}
}

func TestOneImageForEachPlatform(t *testing.T) {
	res, err := compile(t, file("FROM alpine\nARG TARGETARCH\nRUN echo $TARGETARCH\n"), "platform=linux/arm64,linux/amd64", "build-arg:SOURCE_DATE_EPOCH=1700000000")
	if err != nil {
		t.Fatal(err)
	}
	if !res.Index {
		t.Error("not an index")
	}
	var ids []string
	for _, img := range res.Images {
		ids = append(ids, img.ID)
		if img.Epoch == nil || img.Epoch.Unix() != 1700000000 {
			t.Errorf("%s: epoch is %v", img.ID, img.Epoch)
		}
		arch := img.Platform.Architecture
		if v := img.Ref.(*fakeRef).e.Vertex; v.Op.Platform.Architecture != arch || len(img.Base) == 0 {
			t.Errorf("%s: built for %s, base %s", img.ID, v.Op.Platform, img.Base)
		}
	}
	if d := cmp.Diff([]string{"linux/arm64", "linux/amd64"}, ids); d != "" {
		t.Error(d)
	}
}

func TestErrorsPointIntoTheDockerfile(t *testing.T) {
	for _, c := range []struct {
		text string
		line int32
	}{
		{"FROM scratch\nNONSENSE x\n", 2},
		{"FROM missing\n", 1},
		{"FROM scratch\n\nCOPY --from=nowhere:missing a b\n", 3},
	} {
		_, err := compile(t, file(c.text))
		src := bkerrdefs.Sources(err)
		if err == nil || len(src) == 0 || src[0].Ranges[0].Start.Line != c.line {
			t.Errorf("%q: %v at %v", c.text, err, src)
		}
	}
}

func TestOversizedDockerfileIsNotRead(t *testing.T) {
	g := file("FROM scratch\n")
	g.sizes = map[string]int64{"Dockerfile": 16<<20 + 1}
	if _, err := compile(t, g); err == nil || !strings.Contains(err.Error(), "exceeds maximum allowed size") {
		t.Errorf("error is %v", err)
	}
}

func TestEndlessDockerfileIsRefusedAtOnce(t *testing.T) {
	g := file("FROM alpine\n" + strings.Repeat("RUN x\n", maxInstructions))
	if _, err := compile(t, g); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "5001 instructions") {
		t.Errorf("error is %v", err)
	}
	// Long text in a heredoc is one instruction.
	g = file("FROM alpine\nCOPY <<EOF /x\n" + strings.Repeat("RUN x\n", 2*maxInstructions) + "EOF\n")
	if _, err := compile(t, g); err != nil {
		t.Error(err)
	}
}

func TestVariablesThatGrowBeyondBoundsAreRefused(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, c := range map[string]struct{ text, line string }{
		"doubling":     {"FROM alpine\nENV A=xxxx\n" + strings.Repeat("ENV A=$A${A}\n", 40), "Dockerfile:19: the variable A expands"},
		"in turns":     {"FROM alpine\nARG A=xxxx\n" + strings.Repeat("ARG B=$A$A$A$A\nARG A=$B$B$B$B\n", 10), "Dockerfile:11: the variable B expands"},
		"replacing":    {"FROM alpine\nENV A=" + long + " B=" + long + "\nENV C=${A//x/$B$B}\n", "Dockerfile:3: the variable C expands"},
		"triggers":     {"FROM alpine\nONBUILD ENV A=xxxx\n" + strings.Repeat("ONBUILD ENV A=$A$A\n", 40), "the variable A expands"},
		"a document":   {"FROM alpine\nENV A=" + long + "\nCOPY <<EOF /x\n" + strings.Repeat(strings.Repeat("$A", 1000)+"\n", 40) + "EOF\n", "Dockerfile:3: the here-document EOF expands"},
		"environments": {"FROM alpine\n" + strings.Repeat("ENV A="+long+"\nENV B=$B$A\n", 600) + strings.Repeat("RUN x\n", 1000), "take more than 512 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := compile(t, file(c.text)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.line) {
				t.Errorf("error is %v", err)
			}
		})
	}
	for name, text := range map[string]string{
		"a path":            "FROM alpine\n" + strings.Repeat("ENV PATH=/some/directory/bin:$PATH\n", 200),
		"paths of paths":    "FROM alpine\nENV A=/opt\nENV B=$A/app\nENV C=$B/src\nENV D=${C}/test D2=$C/x\nENV E=$D/data\nENV F=${E}/a\n" + strings.Repeat("ENV F=$F/deeper\n", 50),
		"a replacement":     "FROM alpine\nARG V=1.22.3\nENV W=${V//./_}\nENV X=${W/_/-}-${V%.*}\n",
		"a quoted document": "FROM alpine\nENV A=" + long + "\nCOPY <<'EOF' /x\n" + strings.Repeat(strings.Repeat("$A", 1000)+"\n", 40) + "EOF\n",
		"a command":         "FROM alpine\nENV A=" + long + "\nRUN <<EOF\n" + strings.Repeat("echo $A\n", 1000) + "EOF\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := compile(t, file(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBaseImageMayNotExpandBeyondBounds(t *testing.T) {
	for name, config := range map[string]string{
		"environment": `{"Env":["A=` + strings.Repeat("x", 1000) + `"]}`,
		"triggers":    `{"OnBuild":["ENV A=xxxx"` + strings.Repeat(`,"ENV A=$A$A"`, 40) + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			g := file("FROM alpine\n" + strings.Repeat("ENV A=$A$A\n", 12))
			g.container = config
			if _, err := compile(t, g); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "the variable A expands") {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestMissingDockerfileIsNamed(t *testing.T) {
	_, err := compile(t, &fake{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "failed to read dockerfile: open Dockerfile") {
		t.Errorf("error is %v", err)
	}
}

func TestNamedContextsOfEveryKind(t *testing.T) {
	input, err := llb.Local("from-input").Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for context, want := range map[string]string{
		"docker-image://alpine:3.20":                           "docker-image://docker.io/library/alpine:3.20@",
		"oci-layout://store@sha256:" + strings.Repeat("b", 64): "oci-layout://docker.io/library/ctx@sha256:",
		"local:ctx":                           "local://ctx",
		"https://github.com/a/b.git#main:sub": "git://github.com/a/b.git#main:sub",
		"git@example.com:a/b.git":             "git://example.com/a/b.git",
		"https://example.com/x.tar":           "https://example.com/x.tar",
		"input:in":                            "local://from-input",
	} {
		g := file("FROM scratch\nCOPY --from=ctx /a /\n")
		res, err := Compile(t.Context(), Request{
			Options:  map[string]string{"context:ctx": context},
			Inputs:   map[string]*pb.Definition{"in": input.ToPB()},
			Platform: oci.Platform{OS: "linux", Architecture: "amd64"},
		}, g)
		if err != nil {
			t.Errorf("%s: %v", context, err)
			continue
		}
		var ids []string
		for v := res.Images[0].Ref.(*fakeRef).e.Vertex; v != nil; {
			if s := v.Op.GetSource(); s != nil {
				ids = append(ids, s.Identifier)
				break
			}
			v = v.Inputs[0].Vertex
		}
		if !slices.ContainsFunc(ids, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%s: sources are %q, want %q", context, ids, want)
		}
	}
}

func TestWarningsHaveTheirPlace(t *testing.T) {
	g := file("FROM scratch\nMAINTAINER me\n")
	if _, err := compile(t, g); err != nil {
		t.Fatal(err)
	}
	if len(g.warnings) != 1 {
		t.Fatalf("warnings are %+v", g.warnings)
	}
	w := g.warnings[0]
	if w.Filename != "Dockerfile" || w.From != 2 || !strings.Contains(string(w.Short), "MaintainerDeprecated") || len(w.Source) == 0 {
		t.Errorf("warning is %+v", w)
	}
}

func TestCallsAreAnsweredWithoutSolving(t *testing.T) {
	text := "FROM alpine AS base\n# the answer\nARG VERSION=1\nMAINTAINER me\nFROM base AS final\n"
	for _, c := range []struct {
		id, format string
		want       []string
		status     int
	}{
		{RequestLint, "", []string{"Check complete, 1 warning has been found!", "WARNING: MaintainerDeprecated", "sub/Dockerfile:4"}, 1},
		{RequestLint, "json", []string{`"ruleName": "MaintainerDeprecated"`}, 1},
		{RequestOutline, "", []string{"TARGET:", "final"}, 0},
		{RequestTargets, "", []string{"TARGET", "base", "final (default)"}, 0},
		{RequestTargets, "json", []string{`"name": "base"`}, 0},
	} {
		res, err := compile(t, file(text), "requestid="+c.id, "frontend.caps=moby.buildkit.frontend.subrequests+forward")
		if err != nil {
			t.Errorf("%s: %v", c.id, err)
			continue
		}
		var b bytes.Buffer
		if err := res.Call.Print(&b, c.format, "sub/Dockerfile"); err != nil {
			t.Errorf("%s: %v", c.id, err)
		}
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s %s: no %q in\n%s", c.id, c.format, want, &b)
			}
		}
		if res.Call.Status != c.status {
			t.Errorf("%s: status %d, want %d", c.id, res.Call.Status, c.status)
		}
	}
}

func TestLintOfACleanFileAndOfABrokenOne(t *testing.T) {
	res, err := compile(t, file("FROM scratch\n"), "requestid="+RequestLint)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := res.Call.Print(&b, "", ""); err != nil || b.String() != "Check complete, no warnings found.\n" || res.Call.Status != 0 {
		t.Errorf("clean: %q, %v", &b, err)
	}
	res, err = compile(t, file("FROM scratch\nCOPY --from=missing:1 / /\nFROM $x\n"), "requestid="+RequestLint)
	if err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if err := res.Call.Print(&b, "", ""); err == nil || res.Call.Status != 1 {
		t.Errorf("broken: %q, %v", &b, err)
	}
}
