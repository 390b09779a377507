package store

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
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
