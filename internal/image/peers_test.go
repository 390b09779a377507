package image

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"den/internal/oci"
)

// skopeo runs skopeo without the host's configuration.
func skopeo(t *testing.T, args ...string) []byte {
	t.Helper()
	tool, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: ", err)
	}
	cmd := exec.Command(tool, append([]string{"--insecure-policy"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TMPDIR="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// wanted is what the test's image holds.
var wanted = map[string]string{"etc/name": "two", "arch": "amd64", "app": "hello"}

func TestSkopeoReadsWhatDenWrites(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
	img := b.buildOn(base, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{"app:1"}, Images: []*Image{img}}))(t)
	blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{Compression: "zstd"}))(t)
	defer blobs.Close()
	dir := t.TempDir()

	saved := create(t, dir, "saved.tar", func(f *os.File) error {
		return b.Save(t.Context(), f, []string{"app:1"}, Format{})
	})
	layout := create(t, dir, "oci.tar", func(f *os.File) error {
		return b.ExportOCI(t.Context(), f, blobs, []string{"app:1"}, Format{})
	})
	if err := b.ExportLayout(t.Context(), filepath.Join(dir, "layout"), blobs, []string{"app:1"}, Format{}); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{
		"docker-archive:" + saved, "docker-archive:" + saved + ":app:1",
		"oci-archive:" + layout, "oci:" + filepath.Join(dir, "layout") + ":1",
	} {
		var got struct{ Labels map[string]string }
		if err := json.Unmarshal(skopeo(t, "inspect", from), &got); err != nil || got.Labels["vendor"] != "test" {
			t.Errorf("%s: labels are %v, %v", from, got.Labels, err)
		}
		config := skopeo(t, "inspect", "--config", "--raw", from)
		if !bytes.Equal(bytes.TrimSpace(config), img.Config) {
			t.Errorf("%s: another configuration:\n%s", from, config)
		}
		skopeo(t, "copy", from, "dir:"+t.TempDir()) // reads and checks every layer
	}
}

func TestWhatSkopeoWritesIsLoaded(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
	img := b.buildOn(base, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{b.name("app:1")}, Images: []*Image{img}}))(t)
	must(b.Push(t.Context(), b.name("app:1"), PushOptions{}))(t)
	dir := t.TempDir()
	from := "docker://" + b.name("app:1")
	for _, to := range []string{"docker-archive:" + dir + "/d.tar:app:2", "oci-archive:" + dir + "/o.tar:example.com/app:2"} {
		skopeo(t, "copy", "--src-tls-verify=false", from, to)
		_, file, _ := strings.Cut(to, ":")
		file, name, _ := strings.Cut(file, ":")
		other := newBenchAt(t, b.reg, t.TempDir(), Options{})
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := other.Load(t.Context(), f, LoadOptions{})
		if err := release(err, f); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Name != name {
			t.Errorf("%s: loaded %v", to, got)
		}
		loaded := must(other.Resolve(t.Context(), name, ResolveOptions{Mode: ResolveLocal, Platform: &oci.Platform{OS: "linux", Architecture: "amd64"}}))(t)
		if diff := cmp.Diff(wanted, other.files(loaded.Layers)); diff != "" {
			t.Errorf("%s: %s", to, diff)
		}
	}
}

func create(t *testing.T, dir, name string, fill func(*os.File) error) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := release(fill(f), f); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
