package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// tree builds and returns the result's file system.
func (d *den) tree(args ...string) tree {
	d.t.Helper()
	f, err := os.CreateTemp(d.home, "out-*.tar")
	if err != nil {
		d.t.Fatal(err)
	}
	f.Close()
	d.own(f.Name())
	d.run(append([]string{"build", "-o", "type=tar,dest=" + f.Name()}, args...)...)
	return readTree(d.t, f.Name())
}

var pushed atomic.Int64

// newName is a reference of the test registry that nobody else uses.
func newName(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("%s/t/i%d", needRegistry(t), pushed.Add(1))
}

// image builds, pushes and reads the image back from the registry.
func (d *den) image(args ...string) image {
	d.t.Helper()
	name := newName(d.t)
	d.run(append([]string{"build", "--push", "-t", name}, args...)...)
	return fetchImage(d.t, name)
}

// A vertex is one step of a build as --progress=rawjson tells it.
type vertex struct {
	Digest    string     `json:"digest"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started"`
	Completed *time.Time `json:"completed"`
	Cached    bool       `json:"cached"`
	Error     string     `json:"error"`
}

// vertices parses rawjson; the last word on each vertex counts.
func vertices(t testing.TB, text string) []vertex {
	t.Helper()
	last := map[string]vertex{}
	var order []string
	for line := range bytes.Lines([]byte(text)) {
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] != '{' {
			continue
		}
		var s struct {
			Vertexes []vertex `json:"vertexes"`
		}
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("rawjson: %v\n%s", err, line)
		}
		for _, v := range s.Vertexes {
			if _, ok := last[v.Digest]; !ok {
				order = append(order, v.Digest)
			}
			last[v.Digest] = v
		}
	}
	if len(order) == 0 {
		t.Errorf("rawjson has no vertices:\n%s", text)
	}
	out := make([]vertex, 0, len(order))
	for _, k := range order {
		out = append(out, last[k])
	}
	return out
}

// executed are the numbered steps that a build did not find in the cache:
// "[2/3] RUN x". FROM is only looked up and so is left out.
func executed(t testing.TB, rawjson string) []string {
	t.Helper()
	var out []string
	for _, v := range vertices(t, rawjson) {
		if v.Cached || v.Started == nil || !strings.HasPrefix(v.Name, "[") || strings.HasPrefix(v.Name, "[internal]") || strings.Contains(v.Name, "] FROM ") || strings.HasPrefix(v.Name, "[context") {
			continue
		}
		out = append(out, v.Name)
	}
	slices.Sort(out)
	return out
}

// steps builds and returns what was executed.
func (d *den) steps(args ...string) []string {
	d.t.Helper()
	r := d.try(nil, append([]string{"build", "--progress=rawjson"}, args...)...)
	if r.code != 0 {
		d.t.Fatalf("den build %s: exit %d\n%s", strings.Join(args, " "), r.code, r.err)
	}
	return executed(d.t, r.err)
}

// layers are the names of the store's unpacked trees.
func (d *den) layers() []string {
	d.t.Helper()
	list, err := filepath.Glob(filepath.Join(d.store(), "layers", "*", "*", "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}

// leftovers are the store's unfinished things: drafts, downloads.
func (d *den) leftovers() []string {
	d.t.Helper()
	var out []string
	for _, dir := range []string{"tmp", "ingest"} {
		list, err := os.ReadDir(filepath.Join(d.store(), dir))
		if err != nil && !os.IsNotExist(err) {
			d.t.Fatal(err)
		}
		for _, e := range list {
			out = append(out, dir+"/"+e.Name())
		}
	}
	return out
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
