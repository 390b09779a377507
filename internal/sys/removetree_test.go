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
