package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The collector empties the trash while whoever threw something there removes
// it too; each directory may go under the other's hands.
func TestTwoRemoveOneTree(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		tree := filepath.Join(dir, fmt.Sprint(round))
		deep := strings.Repeat("d/", maxRemoveDepth+8)
		for _, p := range []string{"a/b/c", "a/d/e", "f/g", deep, "h/" + deep} {
			if err := os.MkdirAll(filepath.Join(tree, p), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() { errs[i] = RemoveTree(tree) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(tree); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("still there: %v", err)
		}
	}
}

// Whoever adds up a store's files finds what a removal has not freed yet; what has
// another name stays as it is.
func TestRemoveTreeEmptiesALargeFileUnlessItHasAnotherName(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	large := make([]byte, 17<<20)
	for _, name := range []string{"one", "two", "closed"} {
		mode := os.FileMode(0o600)
		if name == "closed" {
			mode = 0o400
		}
		if err := os.WriteFile(filepath.Join(tree, name), large, mode); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(dir, "other")
	if err := os.Link(filepath.Join(tree, "two"), other); err != nil {
		t.Fatal(err)
	}
	open := map[string]*os.File{}
	for _, name := range []string{"one", "closed"} {
		f, err := os.Open(filepath.Join(tree, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		open[name] = f
	}
	if err := RemoveTree(tree); err != nil {
		t.Fatal(err)
	}
	for name, f := range open {
		if info, err := f.Stat(); err != nil || info.Size() != 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if info, err := os.Stat(other); err != nil || info.Size() != int64(len(large)) {
		t.Errorf("the other name: %v, %v", info, err)
	}
}
