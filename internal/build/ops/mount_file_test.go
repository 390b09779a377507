package ops

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestScratchOfTheDeadIsRemoved(t *testing.T) {
	base := t.TempDir()
	used, remove, err := newScratch(base)
	if err != nil {
		t.Fatal(err)
	}
	orphan, foreign := filepath.Join(base, scratchPrefix+"orphan"), filepath.Join(base, "foreign")
	for _, dir := range []string{orphan, foreign} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(orphan, "1"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	exists := func(dir string) bool { _, err := os.Stat(dir); return err == nil }
	sweepScratch(base, time.Now())
	if !exists(orphan) {
		t.Error("removed one that may be about to be locked")
	}
	sweepScratch(base, time.Now().Add(2*orphanAge))
	if exists(orphan) || !exists(used) || !exists(foreign) {
		t.Errorf("orphan %v, used %v, foreign %v", exists(orphan), exists(used), exists(foreign))
	}
	if err := remove(); err != nil || exists(used) {
		t.Errorf("remove: %v", err)
	}
}
