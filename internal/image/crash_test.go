package image

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// TestCrashChild is the process that the others kill: it pulls, or pushes what
// it builds.
func TestCrashChild(t *testing.T) {
	root, host := os.Getenv("DEN_TEST_STORE"), os.Getenv("DEN_TEST_REGISTRY")
	if root == "" {
		t.Skip("needs a parent: this is the other half of TestKilledProcessLeavesNothingFalse")
	}
	b := newBenchAt(t, &server{host: host}, root, Options{})
	p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	img := b.buildOn(p.Image, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{b.name("built:1")}, Images: []*Image{img}}))(t)
	must(b.Push(t.Context(), b.name("built:1"), PushOptions{}))(t)
}

func TestKilledProcessLeavesNothingFalse(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	s.put(t, "app:1", twoLayers(t, "amd64"))
	for _, point := range []string{
		"image.unpack.publish=kill", "image.blob.put=kill", "image.unpack.publish=enospc", "image.blob.put=enospc",
		"store.ingest.write=enospc", "store.ingest.write=kill",
	} {
		t.Run(point, func(t *testing.T) {
			root := t.TempDir()
			cmd := exec.Command(exe, "-test.run=^TestCrashChild$")
			cmd.Env = append(os.Environ(), "DEN_TEST_STORE="+root, "DEN_TEST_REGISTRY="+s.host, "DEN_FAILPOINTS="+point, "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Skipf("needs the failpoint %s, which was not reached", point)
			}
			if strings.Contains(point, "enospc") && !strings.Contains(string(out), "no space left on device") {
				t.Errorf("the error does not say why:\n%s", out)
			}
			b := newBenchAt(t, s, root, Options{})
			report, err := b.st.Verify(t.Context(), true)
			if err != nil || len(report.Problems) > 0 {
				t.Errorf("store is damaged: %+v, %v", report, err)
			}
			p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
			img := b.buildOn(p.Image, "app", "hello")
			must(b.Commit(t.Context(), Built{Names: []string{b.name("built:1")}, Images: []*Image{img}}))(t)
			must(b.Push(t.Context(), b.name("built:1"), PushOptions{}))(t)
			if diff := cmp.Diff(wanted, b.files(img.Layers)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInterruptedPullGoesOnWhereItWas(t *testing.T) {
	b := newBench(t)
	f := newForeign(t, "amd64", makeTar(t, tarMember{name: "big", body: noise(1 << 20)}))
	b.reg.put(t, "app:1", f)
	blob := f.blobs[0]
	half := len(blob) / 2
	path := "/v2/app/blobs/" + string(digest.FromBytes(blob))
	var ranges []string
	broken := true
	b.reg.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "GET" || r.URL.Path != path {
			return false
		}
		if broken && r.Header.Get("Range") == "" { // the line breaks in the middle of the blob,
			_, _ = w.Write(blob[:half])
			panic(http.ErrAbortHandler)
		}
		if broken { // and stays broken
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		ranges = append(ranges, r.Header.Get("Range"))
		return false
	}
	if _, err := b.Pull(t.Context(), b.name("app:1"), PullOptions{}); err == nil {
		t.Fatal("pulled over a broken line")
	}
	broken = false
	p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if len(b.files(p.Layers)["big"]) != 1<<20 {
		t.Error("the file is not whole")
	}
	if len(ranges) != 1 || ranges[0] == "" || strings.HasPrefix(ranges[0], "bytes=0-") {
		t.Errorf("it was fetched again from the start: %q", ranges)
	}
}

// noise is text that does not compress away.
func noise(n int) string {
	var b strings.Builder
	for d := digest.FromString("seed"); b.Len() < n; d = digest.FromString(string(d)) {
		b.WriteString(d.Encoded())
	}
	return b.String()[:n]
}
