package sys

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A program turns a directory into a file while its tree is walked.
func TestWalkOfATreeThatChanges(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"one/a/b/c", "two/a"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"two/a/b", "stays"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte("a file"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
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
			_ = os.Rename(filepath.Join(root, from, "a"), filepath.Join(root, "a"))
			_ = os.Rename(filepath.Join(root, "a"), filepath.Join(root, from, "a"))
		}
	}()
	for range 5000 {
		var stays int64
		err := WalkChanging(root, func(info fs.FileInfo) {
			if info.Name() == "stays" {
				stays = info.Size()
			}
		})
		if err != nil || stays != 6 {
			t.Errorf("what stays has %d bytes, want 6: %v", stays, err)
			break
		}
	}
	close(end)
	<-ended
}
