package probe

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLowestMemoryLimitOnTheWayUpCounts(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"memory.max": "900\n", "a/memory.max": "500\n", "a/b/memory.max": "max\n", "c/memory.max": "x",
		"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/d/memory.limit_in_bytes": "700\n",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for self, want := range map[string]int64{
		"0::/a/b\n": 500, "0::/c\n": 900, "0::/../../outside\n": 900, "5:memory:/d\n": 700, "5:memory:/e\n": 0,
		"5:memory:/d\n0::/a\n": 500, "4:cpu,cpuacct:/a\n": 0, "": 0, "x\n": 0,
	} {
		if got := memoryLimit(root, self); got != want {
			t.Errorf("%q: %d, want %d", self, got, want)
		}
	}
}
