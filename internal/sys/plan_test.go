package sys

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runPlan runs p with a pipe as descriptor 1 and returns what it wrote and its
// exit status.
func runPlan(t *testing.T, p *Plan) ([]byte, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, err := p.Start("den-test", []*os.File{nil, w, os.Stderr})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	if !ws.Exited() {
		t.Fatalf("the plan died of %v\n%s", ws.Signal(), p)
	}
	return out, ws.ExitStatus()
}

func TestWalkerEndsWithinTheBytesThatAreCopied(t *testing.T) {
	code := machineCode()
	if code == nil {
		t.Skip("needs a walker for this architecture")
	}
	if !bytes.Contains(code, []byte("den!den!")) && !bytes.Contains(code, []byte("den!")) {
		t.Errorf("no end mark in the first %d bytes of the walker: raise machineBytes", machineBytes)
	}
}

func TestPlanPassesArgumentsAndResults(t *testing.T) {
	p := NewPlan()
	c := p.Cell(0)
	p.Do(unix.SYS_GETPID).To(c)
	p.Do(unix.SYS_WRITE, Int(1), c.Addr(), Int(8))
	p.Do(unix.SYS_WRITE, Int(1), p.Str("hello"), Int(5))
	p.Do(unix.SYS_EXIT_GROUP, p.Cell(7).Value())
	out, code := runPlan(t, p)
	if code != 7 || len(out) != 13 || string(out[8:]) != "hello" {
		t.Fatalf("exit %d, output %q, want 7 and a pid with hello", code, out)
	}
	if pid := binary.LittleEndian.Uint64(out); pid < 2 {
		t.Errorf("pid is %d", pid)
	}
}

func TestPlanTakesItsThreeBranches(t *testing.T) {
	p := NewPlan()
	onErr, onZero, onPos := p.Label(), p.Label(), p.Label()
	fatal := p.Label()
	p.OnFatal(fatal)
	say := func(s string) { p.Do(unix.SYS_WRITE, Int(1), p.Str(s), Int(len(s))) }
	p.Do(unix.SYS_CLOSE, Int(99)).MayFail()
	p.Do(unix.SYS_CLOSE, Int(99)).Err(onErr)
	say("not here")
	p.Mark(onErr)
	say("e")
	p.Do(unix.SYS_GETPRIORITY, Int(0), Int(0)).Pos(onPos)
	say("not here")
	p.Mark(onZero)
	say("z")
	p.Do(unix.SYS_CLOSE, Int(99)).Note("close what is not open")
	say("not here")
	p.Mark(onPos)
	say("p")
	p.Do(unix.SYS_FCHDIR, Int(99)).Err(0).MayFail()
	p.Do(unix.SYS_UMASK, Int(0)).To(p.Cell(0))
	p.Do(unix.SYS_UMASK, Int(0)).Zero(onZero)
	say("not here")
	p.Mark(fatal)
	say("f")
	p.Exit(3)
	out, code := runPlan(t, p)
	if string(out) != "epzf" || code != 3 {
		t.Errorf("got %q and exit %d, want epzf and 3\n%s", out, code, p)
	}
}

func TestFatalErrorNamesItsOperation(t *testing.T) {
	p := NewPlan()
	fatal := p.Label()
	p.OnFatal(fatal)
	p.Do(unix.SYS_GETPID)
	p.Do(unix.SYS_CLOSE, Int(99)).Note("close the door")
	p.Exit(0)
	p.Mark(fatal)
	p.Do(unix.SYS_WRITE, Int(1), FailureRecord(), Int(FailureBytes))
	p.Exit(125)
	out, code := runPlan(t, p)
	if code != 125 || len(out) != FailureBytes {
		t.Fatalf("exit %d and %d bytes", code, len(out))
	}
	err := p.Failure(binary.LittleEndian.Uint64(out[8:]), unix.Errno(binary.LittleEndian.Uint64(out)))
	if got := err.Error(); got != "close the door: close: bad file descriptor" {
		t.Errorf("error is %q", got)
	}
}

func TestPlanClonesAndWaits(t *testing.T) {
	p := NewPlan()
	child := p.Label()
	status := p.Cell(0)
	pid := p.Cell(0)
	p.Do(unix.SYS_CLONE, Int(int(unix.SIGCHLD))).To(pid).Zero(child)
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), Int(0), Int(0))
	p.Do(unix.SYS_WRITE, Int(1), status.Addr(), Int(8))
	p.Exit(0)
	p.Mark(child)
	p.Do(unix.SYS_EXECVE, p.Str("/bin/sh"), p.Strs([]string{"sh", "-c", "echo $X; exit 5"}), p.Strs([]string{"X=y"}))
	out, code := runPlan(t, p)
	if code != 0 || string(out) != "y\n\x00\x05\x00\x00\x00\x00\x00\x00" {
		t.Errorf("exit %d, output %q", code, out)
	}
}

// The kernel gives up at a ".." if there was a rename anywhere meanwhile.
func TestOpeningInARootIsTriedAgainWhileOthersRename(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "r"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		a, b := filepath.Join(dir, "r", "1"), filepath.Join(dir, "r", "2")
		_ = os.WriteFile(a, nil, 0o600)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = os.Rename(a, b), os.Rename(b, a)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	p := NewPlan()
	root, c := p.Cell(0), p.Cell(0)
	p.Do(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str(dir), Int(unix.O_PATH)).To(root)
	for range 300 {
		p.OpenInRoot(root.Value(), "/a/b/../b/../../a", unix.O_PATH, c)
		p.Close(c)
	}
	p.Exit(0)
	for range 5 {
		if _, code := runPlan(t, p); code != 0 {
			t.Fatal("opening in a root failed")
		}
	}
}

func TestPlanPrints(t *testing.T) {
	p := NewPlan()
	l := p.Label()
	fd := p.Cell(0)
	p.Mark(l)
	p.Do(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/etc"), Int(unix.O_PATH)).To(fd).Note("look")
	p.Do(unix.SYS_CLOSE, fd.Value()).Err(l)
	want := "L1:\n   0 openat(-100, \"/etc\", 0x200000) -> c0  # look\n   1 close(c0) error: L1\n"
	if got := p.String(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestCallTableIsSorted(t *testing.T) {
	for i := range calls[1:] {
		if strings.Compare(calls[i].name, calls[i+1].name) >= 0 {
			t.Errorf("%s before %s", calls[i].name, calls[i+1].name)
		}
	}
	if n, ok := CallNumber(AMD64, "openat2"); !ok || n != 437 {
		t.Errorf("openat2 is %d, %v", n, ok)
	}
	if _, ok := CallNumber(ARM64, "open"); ok {
		t.Error("arm64 has no open")
	}
}

func BenchmarkPlanStart(b *testing.B) {
	for b.Loop() {
		p := NewPlan()
		p.Exit(0)
		pid, err := p.Start("den-test", nil)
		if err != nil {
			b.Fatal(err)
		}
		unix.Wait4(pid, nil, 0, nil)
	}
}
