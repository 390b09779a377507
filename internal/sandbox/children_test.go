package sandbox

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// What keeps a holder from executing den passes: it does not wait for ever for what its payload has left behind.
func TestHolderThatCannotExecuteDenTriesAgain(t *testing.T) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	name := filepath.Join(t.TempDir(), "den")
	to, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600) // it cannot be executed yet
	if err == nil {
		_, err = io.Copy(to, self)
	}
	if err != nil {
		t.Fatal(err)
	}
	to.Close()
	exe, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	r, w, err := os.Pipe() // its end says that all processes have ended
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	const exeFD = 3
	p := &program{Plan: sys.NewPlan()}
	holder := p.Label()
	p.Do(unix.SYS_CLONE, sys.Int(int(unix.SIGCHLD)), sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(0)).Pos(holder)
	p.Do(unix.SYS_WRITE, sys.Int(1), p.Str("x"), sys.Int(1))
	p.Do(unix.SYS_PPOLL, sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail() // for ever
	p.Mark(holder)
	p.reapOrphans(exeFD)
	p.Exit(0)
	pid, err := p.Start("den-test", []*os.File{nil, w, os.Stderr, exe})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o700); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer late.Stop()
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Exited() {
		t.Fatalf("the holder ends by %v, %v", status.Signal(), err)
	}
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}
