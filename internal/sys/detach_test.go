package sys

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A detached process goes on by itself: the test sees its lock taken, and
// freed only when the list has been walked to its end.
func TestDetachedProcessWalksItsList(t *testing.T) {
	dir := t.TempDir()
	lock := filepath.Join(dir, "lock")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d := open(t, dir)
	held, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := Flock(held, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := NewDetached(d, held)
	p.TryMkdir(d, "now")
	p.Rename(d, "now", "old")
	p.Syncfs(d)
	p.TryRename(d, "nothing", "else")
	p.TryUnlink(d, "nothing")
	p.TryMkdir(d, "gone")
	p.TryRmdir(d, "gone")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Flock(open(t, lock), unix.LOCK_EX); err != nil { // waits for its end
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "old")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "gone")); err == nil {
		t.Error("the last call was not made")
	}
}

func TestDetachedProcessStopsAtAnError(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	held, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Flock(held, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := NewDetached(d, held)
	p.Rename(d, "nothing", "else")
	p.TryMkdir(d, "after")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Flock(open(t, filepath.Join(dir, "lock")), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "after")); err == nil {
		t.Error("the list went on after an error")
	}
}

// A pipe that a detached process held would keep a CI job waiting for the end
// of its output.
func TestDetachedProcessHoldsNothingElse(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	block, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer block.Close()
	if err := Flock(block, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	waits := open(t, filepath.Join(dir, "lock"))
	p := NewDetached(waits)
	p.Flock(waits, unix.LOCK_EX) // waits until the test is over
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(r).ReadByte(); err != io.EOF {
		t.Errorf("read from the pipe: %v, want EOF", err)
	}
}
