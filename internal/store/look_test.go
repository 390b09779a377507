package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLookMakesNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "store")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := LookAt(root)
	if err != nil || l.Exists {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := os.Lstat(filepath.Dir(root)); !os.IsNotExist(err) {
		t.Errorf("it made something: %v", err)
	}
	if _, err := LookAt(filepath.Join(file, "store")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("below a file: %v", err)
	}
	s, err := Open(t.Context(), root, Options{EngineDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = LookAt(root); err != nil || !l.Exists {
		t.Errorf("%+v, %v", l, err)
	}
}
