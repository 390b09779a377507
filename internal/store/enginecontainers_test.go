package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestContainersOfAnEngineAreFoundWithoutOpeningTheStore(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if got := EngineContainers(root, dir); len(got) != 0 {
		t.Errorf("an engine without an id has %v", got)
	}
	want := []string{filepath.Join(root, "engines/abcdefgh/containers/a"), filepath.Join(root, "engines/abcdefgh/containers/b")}
	for _, d := range append(want, filepath.Join(root, "engines/otherone/containers/c")) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, engineIDFile), []byte("abcdefgh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := EngineContainers(root, dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Removing a tree empties large files, and a client that follows the log of a container has
// yet to read its end.
func TestDiscardedContainersFilesAreReadToTheEnd(t *testing.T) {
	s := openStore(t, t.TempDir(), t.TempDir())
	c, err := s.NewContainer(t.Context(), testCID)
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16)
	path := filepath.Join(c.Path(), "log", "1.data")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	clear, err := c.Discard("log", "output")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenContainer(testCID); !errdefs.IsNotFound(err) {
		t.Errorf("a discarded container: %v", err)
	}
	if err := clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes of the log are left to who reads it, %v; want %d", len(got), err, len(text))
	}
	if left, err := os.ReadDir(s.path("trash")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
