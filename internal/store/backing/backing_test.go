package backing

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDirectoryWithoutAMarkerHasNoBacking(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing"), os.Args[0]} {
		if b, err := Find(dir); b != nil || err != nil {
			t.Errorf("%s: %v, %v", dir, b, err)
		}
	}
}

func TestMarkerOfALaterDenIsLeftAlone(t *testing.T) {
	for _, content := range []string{`{"v":2,"backing":"loop"}`, `{"v":1,"backing":"raid"}`, `{}`} {
		dir := t.TempDir()
		write(t, dir, markerFile, content)
		if b, err := Find(dir); b != nil || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "later den") {
			t.Errorf("%s: %v, %v", content, b, err)
		}
		if _, err := Create(dir, 1); err == nil {
			t.Errorf("%s: created all the same", content)
		}
	}
}

func TestImageIsMadeInAnEmptyDirectoryOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "den-store.json", "{}")
	if _, err := Create(dir, 1); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "den-store.json") {
		t.Errorf("beside a store: %v", err)
	}
	dir = t.TempDir()
	write(t, dir, "store/file", "")
	if _, err := Create(dir, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("below a full directory: %v", err)
	}
	for _, size := range []int64{0, -1, 1 << 62} {
		if _, err := Create(t.TempDir(), size); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestFileSystemsOfSeveralKernelsAreRefused(t *testing.T) {
	// Nothing is known of proc's locks; it stands for whatever den does not know.
	if err := checkPlace("/proc"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "local disk") {
		t.Errorf("proc: %v", err)
	}
	if err := checkPlace("/dev/shm"); err != nil {
		t.Errorf("tmpfs: %v", err)
	}
}

func FuzzMarker(f *testing.F) {
	f.Add(`{"v":1,"backing":"loop"}`)
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := readMarker(strings.NewReader(s)); err == nil && len(s) > maxMarker {
			t.Errorf("%d bytes became %+v", len(s), m)
		}
	})
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// names lists what is in dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
