package store

import (
	"os"
	"path/filepath"
	"testing"
)

// A program turns a directory into a file while its tree is weighed.
func TestSizeOfATreeThatChanges(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	s := openStore(t, root, filepath.Join(filepath.Dir(root), "engine"))
	tree := s.path("tmp", "changing")
	must(t, os.MkdirAll(filepath.Join(tree, "a"), 0o755))
	for _, dir := range []string{"one/a/b/c", "two/a"} {
		must(t, os.MkdirAll(filepath.Join(tree, dir), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(tree, "two/a/b"), []byte("a file"), 0o644))
	must(t, os.RemoveAll(filepath.Join(tree, "a")))
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			from := []string{"one", "two"}[i%2]
			_ = os.Rename(filepath.Join(tree, from, "a"), filepath.Join(tree, "a"))
			_ = os.Rename(filepath.Join(tree, "a"), filepath.Join(tree, from, "a"))
		}
	}()
	for range 5000 {
		if _, err := s.treeBytes("tmp/changing"); err != nil {
			t.Error(err)
			break
		}
	}
	close(end)
	<-ended
	must(t, os.RemoveAll(tree))
}
