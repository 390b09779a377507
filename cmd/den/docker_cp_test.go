package main

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

// pathsOf plays a container's archive operations: /d is a directory with the file a, /link a link to it, and nothing else is there.
// What is put comes to put, with the directory it is unpacked in.
func pathsOf(t *testing.T, put func(dir string, r io.Reader)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		if r.URL.Path != "/containers/box/archive" {
			t.Errorf("asked for %s", r.URL)
		}
		stat := container.PathStat{Name: filepath.Base(path)}
		switch filepath.Clean(path) {
		case "/d":
			stat.Mode = os.ModeDir | 0o755
		case "/d/a":
			stat.Mode = 0o644
		case "/link":
			stat.Mode, stat.LinkTarget = os.ModeSymlink|0o777, "d"
		default:
			http.Error(w, `{"message":"Could not find the file `+path+` in container box"}`, http.StatusNotFound)
			return
		}
		text, err := json.Marshal(stat)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(text))
		switch r.Method {
		case "GET":
			_, _ = w.Write(archiveOf(filepath.Base(path), stat.Mode))
		case "PUT":
			put(path, r.Body)
		}
	}
}

// archiveOf is what a daemon sends for a path with the name.
func archiveOf(name string, mode os.FileMode) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	file := &tar.Header{Name: name, Mode: 0o644, Size: 3, Typeflag: tar.TypeReg}
	switch {
	case mode.IsDir():
		_ = tw.WriteHeader(&tar.Header{Name: name + "/", Mode: 0o755, Typeflag: tar.TypeDir})
		file.Name += "/a"
	case mode&os.ModeSymlink != 0:
		_ = tw.WriteHeader(&tar.Header{Name: name, Linkname: "d", Typeflag: tar.TypeSymlink})
		_ = tw.Close()
		return buf.Bytes()
	}
	_ = tw.WriteHeader(file)
	_, _ = tw.Write([]byte("one"))
	_ = tw.Close()
	return buf.Bytes()
}

// filesIn lists what is below a directory, with the contents of files.
func filesIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += "=" + string(b)
		}
		list = append(list, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestDockerCpCopiesOutAsDockerDoes(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"box:/d DIR/new", []string{"have", "new", "new/a=one"}},
		{"box:/d DIR/have", []string{"have", "have/d", "have/d/a=one"}},
		{"box:/d/. DIR/have", []string{"have", "have/a=one"}},
		{"box:/d/a DIR/have", []string{"have", "have/a=one"}},
		{"box:/d/a DIR/b", []string{"b=one", "have"}},
		{"box:/link DIR/have", []string{"have", "have/link"}},
		{"-L box:/link DIR/have", []string{"have", "have/link", "have/link/a=one"}},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "have"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, _, err := dockerOutput(t, pathsOf(t, nil), append([]string{"cp"}, strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))...)...)
		if diff := cmp.Diff(c.want, filesIn(t, dir)); err != nil || diff != "" {
			t.Errorf("cp %s: %v\n%s", c.args, err, diff)
		}
	}
}

func TestDockerCpCopiesInAsDockerDoes(t *testing.T) {
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "s"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "s", "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, dir, names string }{
		{"SRC/s box:/d", "/d", "s/ s/f"},
		{"SRC/s/. box:/d", "/d", "./ ./f"},
		{"SRC/s/f box:/d", "/d", "f"},
		{"SRC/s/f box:/d/new", "/d/", "new"},
		{"SRC/s/f box:/link", "/d", "f"}, // unpacked in what the link points to
	} {
		dir, names := "", []string{}
		h := pathsOf(t, func(d string, r io.Reader) {
			dir = d
			for tr := tar.NewReader(r); ; {
				h, err := tr.Next()
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				names = append(names, h.Name)
			}
		})
		_, said, err := dockerOutput(t, h, append([]string{"cp"}, strings.Fields(strings.ReplaceAll(c.args, "SRC", src))...)...)
		slices.Sort(names)
		if filepath.Clean(dir) != filepath.Clean(c.dir) || strings.Join(names, " ") != c.names || err != nil {
			t.Errorf("cp %s: %s %q, want %s %q (%v, %s)", c.args, dir, names, c.dir, c.names, err, said)
		}
	}
}

func TestDockerCpRefusesWhatItCannotCopy(t *testing.T) {
	for args, want := range map[string]string{
		"a b": "container source", "box:/a box:/b": "between containers", "box: b": "need a path", "box:/none .": "Could not find", "box:/d/a /none/such/x": "does not exist",
		"/no/such/file box:/d": "no such file", "- box:/d/a": "must be a directory",
	} {
		_, said, err := dockerOutput(t, pathsOf(t, func(string, io.Reader) { t.Error("something was put") }), append([]string{"cp"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(said, want) {
			t.Errorf("cp %s: %v, %q", args, err, said)
		}
	}
}

// What comes from a container leaves the directory that was named by no path and no link.
func TestDockerCpIsNotLedElsewhere(t *testing.T) {
	for _, evil := range [][]*tar.Header{
		{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/../../evil", Typeflag: tar.TypeReg, Size: 1, Mode: 0o644}},
		{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, {Name: "d/l/evil", Typeflag: tar.TypeReg, Size: 1, Mode: 0o644}},
	} {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range evil {
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprint(tw, strings.Repeat("x", int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "in", "here"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, said, err := dockerOutput(t, func(w http.ResponseWriter, _ *http.Request) {
			stat, _ := json.Marshal(container.PathStat{Name: "d", Mode: os.ModeDir | 0o755})
			w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(stat))
			_, _ = w.Write(buf.Bytes())
		}, "cp", "box:/d", filepath.Join(dir, "in", "here"))
		for _, name := range filesIn(t, dir) {
			if strings.HasPrefix(name, "evil") || strings.HasPrefix(name, "in/evil") {
				t.Errorf("it was led to %s (%v, %s)", name, err, said)
			}
		}
		if err == nil {
			t.Errorf("nothing was said of %s", evil[1].Name)
		}
	}
}
