package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"

	"den/internal/image"
	"den/internal/oci"
)

// These builds have no RUN: they work on every machine.

const copyAll = "FROM scratch\nLABEL a=b\nCOPY a /x/\nCOPY b /y/\n"

func TestCopyMakesAnImage(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	iid, meta := filepath.Join(t.TempDir(), "iid"), filepath.Join(t.TempDir(), "meta")
	res, s := r.solve(Request{Context: dir, Tags: []string{"app:test", "app:two"}, Labels: []string{"c=d"}, IIDFile: iid, MetadataFile: meta})
	if d := cmp.Diff([]string{"[1/2] COPY a /x/", "[2/2] COPY b /y/"}, s.executed()); d != "" {
		t.Errorf("executed (-want +got):\n%s", d)
	}
	c := r.config("app:two")
	if c.Config.Labels["a"] != "b" || c.Config.Labels["c"] != "d" || len(c.RootFS.DiffIDs) != 2 {
		t.Errorf("configuration is %+v", c)
	}
	if id, err := os.ReadFile(iid); err != nil || string(id) != string(res.ImageID) {
		t.Errorf("iidfile is %q, %v", id, err)
	}
	raw, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]string
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"containerimage.config.digest": string(res.ImageID), "containerimage.digest": string(res.ImageID),
		"image.name": "docker.io/library/app:test,docker.io/library/app:two",
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}
}

func TestSecondProcessExecutesNothingAndMakesTheSameImage(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two", "c": "unused"})
	first, _ := r.solve(Request{Context: dir})
	for name, change := range map[string]func() error{
		"nothing":         func() error { return nil },
		"an unused file":  func() error { return os.WriteFile(filepath.Join(dir, "c"), []byte("changed"), 0o644) },
		"a time":          func() error { return os.Chtimes(filepath.Join(dir, "a"), first1970, first1970) },
		"the ignore file": func() error { return os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("c\n"), 0o644) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		again, s := r.solve(Request{Context: dir})
		if got := s.executed(); len(got) > 0 {
			t.Errorf("%s changed: %q were executed", name, got)
		}
		if again.ImageID != first.ImageID {
			t.Errorf("%s changed: the image is %s, was %s", name, again.ImageID, first.ImageID)
		}
	}
}

func TestChangedFileRebuildsFromItsStep(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	r.solve(Request{Context: dir})
	write(t, dir, map[string]string{"b": "changed"})
	_, s := r.solve(Request{Context: dir})
	if d := cmp.Diff([]string{"[2/2] COPY b /y/"}, s.executed()); d != "" {
		t.Errorf("executed (-want +got):\n%s", d)
	}
	_, s = r.solve(Request{Context: dir, NoCache: true})
	if len(s.executed()) != 2 {
		t.Errorf("without cache %q were executed", s.executed())
	}
}

func TestFilesGoToADirectoryAndToATar(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	out := filepath.Join(t.TempDir(), "out")
	var stdout bytes.Buffer
	r.solve(Request{Context: dir, Outputs: []string{out, "-"}, Stdout: &stdout})
	for name, want := range map[string]string{"x/a": "one", "y/b": "two"} {
		got, err := os.ReadFile(filepath.Join(out, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	files := map[string]string{}
	for tr := tar.NewReader(&stdout); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = string(data)
		}
	}
	if d := cmp.Diff(map[string]string{"x/a": "one", "y/b": "two"}, files); d != "" {
		t.Errorf("tar (-want +got):\n%s", d)
	}
}

func TestArchivesAppearWholeAndLoadAgain(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	oci, docker := filepath.Join(t.TempDir(), "oci.tar"), filepath.Join(t.TempDir(), "docker.tar")
	res, _ := r.solve(Request{Context: dir, Tags: []string{"app:1"}, Outputs: []string{
		"type=oci,dest=" + oci + ",compression=zstd", "type=docker,dest=" + docker,
	}})
	if _, ok := res.Metadata["containerimage.descriptor"]; !ok {
		t.Errorf("metadata is %v", res.Metadata)
	}
	for _, file := range []string{oci, docker} {
		other := newRig(t)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := other.open().images.Load(t.Context(), f, image.LoadOptions{}); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if c := other.config("app:1"); c.Config.Labels["a"] != "b" {
			t.Errorf("%s: configuration is %+v", file, c)
		}
	}
}

func TestPushGoesToTheRegistry(t *testing.T) {
	srv := httptest.NewServer(ggcrregistry.New(ggcrregistry.Logger(quiet())))
	defer srv.Close()
	name := strings.TrimPrefix(srv.URL, "http://") + "/team/app:1"
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	res, _ := r.solve(Request{Context: dir, Tags: []string{name}, Push: true, Annotations: []string{"note=x"}})
	pushed, ok := res.Metadata["containerimage.digest"].(oci.Digest)
	if !ok {
		t.Fatalf("metadata is %v", res.Metadata)
	}
	other := newRig(t)
	base := other.context(map[string]string{"Dockerfile": "FROM " + name + "\nCOPY c /z/\n", "c": "three"})
	other.solve(Request{Context: base, Tags: []string{"child"}})
	if c := other.config("child"); len(c.RootFS.DiffIDs) != 3 || c.Config.Labels["a"] != "b" {
		t.Errorf("configuration is %+v", c)
	}
	_, s := other.solve(Request{Context: base})
	if len(s.executed()) > 0 {
		t.Errorf("%q were executed", s.executed())
	}
	resp, err := http.Get(srv.URL + "/v2/team/app/manifests/" + string(pushed))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), `"note": "x"`) {
		t.Errorf("manifest is %s, %v", body, err)
	}
}

func TestPlatformsMakeAnIndex(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY bin-$TARGETARCH /bin\n", "bin-amd64": "x", "bin-arm64": "y"})
	layout, out := t.TempDir(), t.TempDir()
	r.solve(Request{Context: dir, Tags: []string{"multi"}, Platforms: []string{"linux/amd64,linux/arm64"}, Outputs: []string{
		"type=oci,tar=false,dest=" + layout, "type=local,dest=" + out,
	}})
	for name, want := range map[string]string{"linux_amd64/bin": "x", "linux_arm64/bin": "y"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	use := r.context(map[string]string{"Dockerfile": "FROM --platform=linux/arm64 base AS a\nFROM scratch\nCOPY --from=a /bin /got\n"})
	got := t.TempDir()
	r.solve(Request{Context: use, BuildContexts: []string{"base=oci-layout://" + layout}, Outputs: []string{got}})
	if data, err := os.ReadFile(filepath.Join(got, "got")); err != nil || string(data) != "y" {
		t.Errorf("the layout's image holds %q, %v", data, err)
	}
}

func TestLinkedCopyIsALayerOfItsOwn(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch AS base\nCOPY a /a\nFROM base\nCOPY --link b /b\n", "a": "one", "b": "two"})
	r.solve(Request{Context: dir, Tags: []string{"x"}})
	before := r.config("x").RootFS.DiffIDs
	write(t, dir, map[string]string{"a": "changed"})
	_, s := r.solve(Request{Context: dir, Tags: []string{"x"}})
	after := r.config("x").RootFS.DiffIDs
	if len(before) != 2 || len(after) != 2 || before[0] == after[0] || before[1] != after[1] {
		t.Errorf("layers were %v, are %v", before, after)
	}
	for _, name := range s.executed() {
		if strings.Contains(name, "] COPY --link") {
			t.Errorf("%q was executed", name)
		}
	}
}

func TestContextsThatAreNotDirectories(t *testing.T) {
	files := map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"}
	raw := tarOf(t, files)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write(gz(t, raw)); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	for name, req := range map[string]Request{
		"tar on stdin":        {Context: "-", Stdin: bytes.NewReader(raw)},
		"http tarball":        {Context: srv.URL + "/x.tar.gz"},
		"Dockerfile on stdin": {Context: "-", Stdin: strings.NewReader("FROM scratch\nCOPY <<EOF /x/a\none\nEOF\n")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			out := t.TempDir()
			req.Outputs = []string{out}
			r.solve(req)
			got, err := os.ReadFile(filepath.Join(out, "x/a"))
			if err != nil || strings.TrimSpace(string(got)) != "one" {
				t.Errorf("file is %q, %v", got, err)
			}
		})
	}
}

func TestNamedContextsAreCopiedFrom(t *testing.T) {
	r := newRig(t)
	other := r.context(map[string]string{"f": "theirs"})
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nCOPY --from=other f /f\n"})
	out := t.TempDir()
	r.solve(Request{Context: dir, BuildContexts: []string{"other=" + other}, Outputs: []string{out}})
	if got, err := os.ReadFile(filepath.Join(out, "f")); err != nil || string(got) != "theirs" {
		t.Errorf("file is %q, %v", got, err)
	}
}

func TestMissingFileIsShownInTheDockerfile(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\n\nCOPY nothing /x\n"})
	_, _, err := r.try(Request{Context: dir})
	src := bkerrdefs.Sources(err)
	if err == nil || len(src) != 1 || src[0].Ranges[0].Start.Line != 3 || !strings.Contains(err.Error(), `"/nothing": not found`) {
		t.Errorf("error is %v at %v", err, src)
	}
}

func TestCallsLookAndDoNotBuild(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nMAINTAINER me\n"})
	res, _ := r.solve(Request{Context: dir, Call: "check"})
	var b bytes.Buffer
	status, err := res.Call.Print(&b)
	if err != nil || status != 1 || !strings.Contains(b.String(), filepath.Join(dir, "Dockerfile")+":2") {
		t.Errorf("status %d, %v:\n%s", status, err, &b)
	}
	if list, err := r.open().images.List(t.Context(), nil); err != nil || len(list) > 0 {
		t.Errorf("images are %v, %v", list, err)
	}
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

var first1970 = time.Unix(0, 0)

func TestSameSourcesGiveTheSameManifestInTwoStores(t *testing.T) {
	var digests []any
	for range 2 {
		r := newRig(t)
		dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
		res, _ := r.solve(Request{
			Context: dir, LookupEnv: lookup(map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}),
			Outputs: []string{"type=oci,rewrite-timestamp=true,dest=" + filepath.Join(t.TempDir(), "x.tar")},
		})
		digests = append(digests, res.Metadata["containerimage.digest"])
	}
	if digests[0] == nil || digests[0] != digests[1] {
		t.Errorf("manifests are %v", digests)
	}
}

func TestRewriteWithoutAnEpochIsSaid(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	_, s := r.solve(Request{Context: dir, Outputs: []string{"type=image,rewrite-timestamp=true"}})
	if len(s.warnings) != 1 || !strings.Contains(string(s.warnings[0].Short), "SOURCE_DATE_EPOCH") {
		t.Errorf("warnings are %v", s.warnings)
	}
}

func TestOnlyCacheLeavesNoImage(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	r.solve(Request{Context: dir, Outputs: []string{"type=cacheonly"}})
	if list, err := r.open().images.List(t.Context(), nil); err != nil || len(list) > 0 {
		t.Errorf("images are %v, %v", list, err)
	}
	if _, s := r.solve(Request{Context: dir}); len(s.executed()) > 0 {
		t.Errorf("executed %q", s.executed())
	}
}

func TestFailedOutputLeavesNoFile(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	out := t.TempDir()
	if err := os.Mkdir(filepath.Join(out, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.try(Request{Context: dir, Outputs: []string{"type=oci,dest=" + filepath.Join(out, "taken")}}); err == nil {
		t.Error("a directory was overwritten")
	}
	if _, _, err := r.try(Request{Context: dir, Platforms: []string{"linux/amd64", "linux/arm64"}, Outputs: []string{"type=docker,dest=" + filepath.Join(out, "x.tar")}}); err == nil {
		t.Error("two platforms fit into a docker archive")
	}
	left, err := os.ReadDir(out)
	if err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestAnnotationsOfAnIndexAndItsDescriptors(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "x"})
	layout := t.TempDir()
	notes := []string{"manifest:m=1", "manifest-descriptor:d=2", "manifest-descriptor[linux/arm64]:arm=3", "index:i=4", "index-descriptor:x=5"}
	r.solve(Request{
		Context: dir, Tags: []string{"notes:1"}, Platforms: []string{"linux/amd64", "linux/arm64"}, Annotations: notes,
		Outputs: []string{"type=oci,tar=false,dest=" + layout},
	})
	read := func(name string, v any) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(layout, name))
		if err == nil {
			err = json.Unmarshal(raw, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var top, index oci.Index
	read("index.json", &top)
	if top.Manifests[0].Annotations["x"] != "5" {
		t.Errorf("index.json names it with %v", top.Manifests[0].Annotations)
	}
	read("blobs/sha256/"+top.Manifests[0].Digest.Encoded(), &index)
	if d := cmp.Diff(map[string]string{"i": "4"}, index.Annotations); d != "" {
		t.Errorf("index (-want +got):\n%s", d)
	}
	for i, want := range []map[string]string{{"d": "2"}, {"d": "2", "arm": "3"}} {
		if d := cmp.Diff(want, index.Manifests[i].Annotations); d != "" {
			t.Errorf("%s (-want +got):\n%s", index.Manifests[i].Platform.Architecture, d)
		}
		var m oci.Manifest
		read("blobs/sha256/"+index.Manifests[i].Digest.Encoded(), &m)
		if m.Annotations["m"] != "1" {
			t.Errorf("manifest has %v", m.Annotations)
		}
	}
}

func TestAnnotationsThatWouldBeLostAreRefused(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "x"})
	for note, want := range map[string]string{
		"index:a=b": "oci-mediatypes=false", "manifest-descriptor:a=b": "oci-mediatypes=false",
		"manifest[linux/s390x]:a=b": "no platform linux/s390x",
	} {
		_, _, err := r.try(Request{
			Context: dir, Tags: []string{"x"}, Annotations: []string{note}, Platforms: []string{"linux/amd64"},
			Outputs: []string{"type=oci,oci-mediatypes=false,dest=" + filepath.Join(t.TempDir(), "x.tar")},
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", note, err, want)
		}
	}
}

func TestEpochIsTakenFromAGitContext(t *testing.T) {
	r := newRig(t)
	repo := gitServer(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\nLABEL a=b\n", "f": "from git"})
	r.solve(Request{
		Context: repo + "#main", Tags: []string{"dated"}, BuildArgs: []string{"SOURCE_DATE_EPOCH=context"},
		Outputs: []string{"type=image,rewrite-timestamp=true"},
	})
	c := r.config("dated")
	if c.Created == nil || c.Created.Unix() != 1700000000 {
		t.Errorf("the image was created at %v, the commit at 1700000000", c.Created)
	}
}

func TestEpochOfADirectoryIsNone(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "x"})
	_, s := r.solve(Request{
		Context: dir, BuildArgs: []string{"SOURCE_DATE_EPOCH=context"}, Outputs: []string{"type=image,rewrite-timestamp=true"},
	})
	if len(s.warnings) != 1 || !strings.Contains(string(s.warnings[0].Short), "SOURCE_DATE_EPOCH") {
		t.Errorf("warnings are %v", s.warnings)
	}
}

func TestEpochIsTakenFromAFileOnTheWeb(t *testing.T) {
	const when = 1600000000
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", time.Unix(when, 0).UTC().Format(http.TimeFormat))
		_, _ = io.WriteString(w, "FROM scratch\nLABEL a=b\n")
	}))
	defer srv.Close()
	r := newRig(t)
	r.solve(Request{Context: srv.URL + "/Dockerfile", Tags: []string{"dated"}, BuildArgs: []string{"SOURCE_DATE_EPOCH=context"}})
	if c := r.config("dated"); c.Created == nil || c.Created.Unix() != when {
		t.Errorf("the image was created at %v", c.Created)
	}
}

func TestGitContext(t *testing.T) {
	r := newRig(t)
	repo := gitServer(t, map[string]string{"sub/Dockerfile": "FROM scratch\nCOPY f /f\n", "sub/f": "from git"})
	out := t.TempDir()
	req := Request{Context: repo + "#main:sub", Outputs: []string{out}}
	r.solve(req)
	if got, err := os.ReadFile(filepath.Join(out, "f")); err != nil || string(got) != "from git" {
		t.Errorf("file is %q, %v", got, err)
	}
	if _, s := r.solve(req); len(s.executed()) > 0 {
		t.Errorf("executed %q", s.executed())
	}
}

func TestImageBuiltHereIsABase(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	r.solve(Request{Context: dir, Tags: []string{"mine"}})
	child := r.context(map[string]string{"Dockerfile": "FROM mine\nCOPY c /c\n", "c": "three"})
	out := t.TempDir()
	r.solve(Request{Context: child, Outputs: []string{out}})
	if got, err := os.ReadFile(filepath.Join(out, "x/a")); err != nil || string(got) != "one" {
		t.Errorf("file is %q, %v", got, err)
	}
	if _, s := r.solve(Request{Context: child}); len(s.executed()) > 0 {
		t.Errorf("executed %q", s.executed())
	}
	write(t, dir, map[string]string{"a": "changed"})
	r.solve(Request{Context: dir, Tags: []string{"mine"}})
	r.solve(Request{Context: child, Outputs: []string{out}})
	if got, err := os.ReadFile(filepath.Join(out, "x/a")); err != nil || string(got) != "changed" {
		t.Errorf("the new base's file is %q, %v", got, err)
	}
}
