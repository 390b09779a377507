package store

import (
	"bytes"
	"context"
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

// Where a removal ends half-way there is no container left without its logs.
func TestContainerKeepsItsLogsUntilItIsGone(t *testing.T) {
	s := openStore(t, t.TempDir(), t.TempDir())
	c, err := s.NewContainer(t.Context(), testCID)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(c.Path(), "log")
	// A trash that takes nothing ends it in the middle.
	if err := errors.Join(os.Mkdir(log, 0o700), os.Rename(s.path("trash"), s.path("elsewhere"))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Discard("log"); err == nil {
		t.Fatal("there was a trash")
	}
	if err := os.Rename(s.path("elsewhere"), s.path("trash")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Path()); err == nil {
		if _, err := os.Stat(log); err != nil {
			t.Errorf("the container is there, and its log is not: %v", err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CollectGarbage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWhoWaitsForNamesCanLeave(t *testing.T) {
	s := openStore(t, t.TempDir(), t.TempDir())
	held, done := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- s.withNames(t.Context(), func() error {
			close(held)
			<-done
			return nil
		})
	}()
	<-held
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.NameContainer(gone, "db", testCID); !errors.Is(err, context.Canceled) {
		t.Errorf("naming: %v", err)
	}
	close(done)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if err := s.NameContainer(t.Context(), "db", testCID); err != nil {
		t.Error(err)
	}
}
