package sandbox_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
)

// TestHelperStartsDetached is not a test: it is the den that starts a detached sandbox
// and is killed.
func TestHelperStartsDetached(t *testing.T) {
	dir := os.Getenv("DEN_TEST_DETACH")
	if dir == "" {
		t.Skip("needs a test that kills it")
	}
	b := sandboxtest.New(t, executor(t, sandbox.Options{}))
	fmt.Printf("upper %s\n", b.Upper)
	r := detachable(b, dir, os.Getenv("DEN_TEST_SCRIPT"))
	r.Spec.Process.Terminal = os.Getenv("DEN_TEST_TERMINAL") != ""
	if os.Getenv("DEN_TEST_MEMORY") != "" {
		limit := int64(16 << 20)
		r.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		r.Warn = func(s string) { fmt.Println("warning", s) }
	}
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Printf("pid %d\n", s.Pid())
	select {}
}

// detachable is a request for a detached sandbox with the files of dir: pipes in and out, a
// lease, and a volume on a mount point that is not in the image.
func detachable(b *sandboxtest.Bench, dir, script string) *sandbox.Request {
	b.Helper()
	r := b.Request(script)
	r.Detach = filepath.Join(dir, "detach")
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		return f
	}
	in, out := open("in"), open("out")
	r.Stdin, r.Stdout, r.Stderr = in, out, out
	lease, err := os.Open(filepath.Join(dir, "lease"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { lease.Close() })
	if err := unix.Flock(int(lease.Fd()), unix.LOCK_SH); err != nil {
		b.Fatal(err)
	}
	r.Hold = []*os.File{in, out, lease}
	r.Mounts = []oci.Mount{{Type: "bind", Source: filepath.Join(dir, "lease"), Target: "/made/here"}}
	return r
}

// detachDir is a directory as detachable wants it.
func detachDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "detach"), 0o700), os.Mkdir(filepath.Join(dir, "lease"), 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o755),
		unix.Mkfifo(filepath.Join(dir, "in"), 0o600), unix.Mkfifo(filepath.Join(dir, "out"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startedAndKilled runs the helper and kills it as soon as the payload runs; a failpoint
// may kill it earlier. It returns the upper directory and the payload's id, 0 if it did not come to run.
func startedAndKilled(t *testing.T, dir, script string, env ...string) (upper string, pid int) {
	t.Helper()
	a := adopter(t)
	den := exec.Command(os.Args[0], "-test.run=^TestHelperStartsDetached$")
	den.Env = append(os.Environ(), append(env, "DEN_TEST_DETACH="+dir, "DEN_TEST_SCRIPT="+script, "TMPDIR="+filepath.Join(dir, "tmp"))...)
	den.Stderr = os.Stderr
	out, err := den.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := den.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whatever became of the test
		if s, err := a.Adopt(context.Background(), "cleanup", filepath.Join(dir, "detach")); err == nil {
			_ = s.Signal(unix.SIGKILL)
			_, _ = s.Wait(context.Background())
		}
	})
	for sc := bufio.NewScanner(out); pid == 0 && sc.Scan(); {
		_, _ = fmt.Sscanf(sc.Text(), "upper %s", &upper)
		_, _ = fmt.Sscanf(sc.Text(), "pid %d", &pid)
		if text, ok := strings.CutPrefix(sc.Text(), "error "); ok {
			t.Error(text)
		}
		if text, ok := strings.CutPrefix(sc.Text(), "warning "); ok {
			defer t.Skip("needs a cgroup: ", text)
		}
	}
	_ = den.Process.Signal(syscall.SIGKILL)
	_ = den.Wait()
	return upper, pid
}

func adopter(t *testing.T) sandbox.Adopter {
	t.Helper()
	a, ok := executor(t, sandbox.Options{}).(sandbox.Adopter)
	if !ok {
		t.Fatal("not an Adopter")
	}
	return a
}

// outOf reads lines from the pipe that the payload writes to.
func outOf(t *testing.T, dir string) *bufio.Reader {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "out"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(f)
}

func wantLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if line, err := r.ReadString('\n'); strings.TrimSpace(line) != want || err != nil {
		t.Fatalf("got %q, %v, want %q", line, err, want)
	}
}

// wantNothingLeft checks what has to be gone after a sandbox's end.
func wantNothingLeft(t *testing.T, dir, upper string, pid int) {
	t.Helper()
	if !tryLock(t, filepath.Join(dir, "lease")) {
		t.Error("the lease is still held")
	}
	if _, err := os.Stat(filepath.Join(upper, "made")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	if err := unix.Kill(pid, 0); pid != 0 && !errors.Is(err, unix.ESRCH) {
		t.Errorf("the payload is left: %v", err)
	}
}

func TestDetachedSandboxOutlivesDenAndIsAdopted(t *testing.T) { outlives(t) }

func TestDetachedSandboxWithSharedPidsOutlivesDen(t *testing.T) {
	t.Setenv("DEN_TEST_SHARE_PIDS", "1")
	outlives(t)
}

func outlives(t *testing.T) {
	a := adopter(t)
	dir := detachDir(t)
	upper, pid := startedAndKilled(t, dir, "echo ready; read x; echo got $x; (setsid sleep 1000 &); trap 'exit 7' TERM; echo waiting; while :; do sleep 0.05; done")
	if pid == 0 {
		t.Fatal("no payload")
	}
	out := outOf(t, dir)
	wantLine(t, out, "ready")
	in, err := os.OpenFile(filepath.Join(dir, "in"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.WriteString(in, "typed\n"); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "got typed")
	wantLine(t, out, "waiting")
	if tryLock(t, filepath.Join(dir, "lease")) {
		t.Error("the lease is gone with den")
	}
	s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Pid() != pid {
		t.Errorf("pid is %d, was %d", s.Pid(), pid)
	}
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"sh", "-c", "ls -d /made/here && grep ^Seccomp: /proc/self/status | cut -f2"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	var text sandboxtest.Buffer
	e, err := s.(sandbox.Execer).Exec(t.Context(), &sandbox.ExecRequest{ID: "exec", Process: spec.Process, Stdout: &text})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context()); err != nil || exit.Code != 0 || text.String() != "/made/here\n2\n" {
		t.Errorf("exec: %+v, %v, %q", exit, err, text.String())
	}
	if err := s.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	exit, err := s.Wait(t.Context())
	if err != nil || exit.Code != 7 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
	wantNothingLeft(t, dir, upper, pid)
	// Who adopts it once more, because the first was killed before it said so, hears the same.
	s, err = a.Adopt(t.Context(), "again", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 7 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
	if err := s.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal after the end: %v", err)
	}
}

func TestDetachedSandboxThatEndedMeanwhileIsAdopted(t *testing.T) {
	a := adopter(t)
	dir := detachDir(t)
	upper, pid := startedAndKilled(t, dir, "echo ready; read x; exit 5")
	out := outOf(t, dir)
	wantLine(t, out, "ready")
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	lease, err := os.Open(filepath.Join(dir, "lease"))
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	if err := unix.Flock(int(lease.Fd()), unix.LOCK_EX); err != nil { // the holder has ended
		t.Fatal(err)
	}
	lease.Close()
	s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 5 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
	wantNothingLeft(t, dir, upper, pid)
}

// TestDenKilledAtAnyStepOfAStartLeavesNothingUnowned: either who adopts has a sandbox, or
// the holder has ended it.
func TestDenKilledAtAnyStepOfAStartLeavesNothingUnowned(t *testing.T) {
	a := adopter(t)
	for _, point := range []string{
		"sandbox.detach.after-state", "sandbox.detach.before-holder", "sandbox.detach.after-holder", "sandbox.detach.after-pid",
		"sandbox.start.after-exec", "sandbox.detach.before-release", "sandbox.detach.after-release",
	} {
		t.Run(strings.ReplaceAll(point, ".", "-"), func(t *testing.T) {
			dir := detachDir(t)
			upper, pid := startedAndKilled(t, dir, "trap '' TERM; while :; do sleep 1000; done", "DEN_FAILPOINTS="+point+"=kill")
			if pid != 0 {
				t.Fatal("den was not killed before the end of Start")
			}
			s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
			switch released := point == "sandbox.detach.after-release"; {
			case released && err != nil:
				t.Fatal(err)
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				t.Fatal(err)
			default:
				if pid = s.Pid(); released {
					if err := s.Signal(unix.SIGKILL); err != nil {
						t.Error(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				// Before it executes, a payload may see den's end before the holder does.
				if exit, err := s.Wait(ctx); err != nil || exit.Signal != unix.SIGKILL && (released || exit.Code != 125 && exit.Code != 126) {
					t.Errorf("exit is %+v, %v", exit, err)
				}
			}
			wantNothingLeft(t, dir, upper, pid)
		})
	}
}

func TestDetachedTerminalIsTakenOver(t *testing.T) {
	a := adopter(t)
	dir := detachDir(t)
	_, pid := startedAndKilled(t, dir, "stty -echo; echo ready; read x; echo got $x; stty size; exit 3", "DEN_TEST_TERMINAL=1")
	if pid == 0 {
		t.Fatal("no payload")
	}
	for range 2 { // as often as somebody takes it
		s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
		if err != nil {
			t.Fatal(err)
		}
		master := s.(sandbox.Terminal).Terminal()
		if master == nil {
			t.Fatal("no terminal")
		}
		if err := s.Resize(33, 44); err != nil {
			t.Error(err)
		}
	}
	s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	master := s.(sandbox.Terminal).Terminal()
	defer master.Close()
	if err := master.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(master)
	wantLine(t, out, "ready")
	if _, err := io.WriteString(master, "typed\n"); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "got typed")
	wantLine(t, out, "33 44")
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 3 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

func TestDetachedSandboxOutOfMemoryIsSeenByWhoAdopts(t *testing.T) {
	a := adopter(t)
	dir := detachDir(t)
	upper, pid := startedAndKilled(t, dir, "echo ready; read x; dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; exit 9", "DEN_TEST_MEMORY=1")
	wantLine(t, outOf(t, dir), "ready")
	s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := s.(sandbox.Inspector).Stats(t.Context()); err != nil || st.MemoryLimitBytes != 16<<20 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and by who adopts it once more, when the cgroup is gone
		if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 9 || !exit.OOMKilled {
			t.Errorf("exit is %+v, %v", exit, err)
		}
		if s, err = a.Adopt(t.Context(), "again", filepath.Join(dir, "detach")); err != nil {
			t.Fatal(err)
		}
	}
	wantNothingLeft(t, dir, upper, pid)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/*TestHelperStartsDetached*"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

// TestHoldersOfDetachedSandboxesAreSmall bounds what an idle container costs beside its program.
func TestHoldersOfDetachedSandboxesAreSmall(t *testing.T) {
	dir := detachDir(t)
	a := adopter(t)
	_, pid := startedAndKilled(t, dir, "echo ready; exec sleep 1000")
	wantLine(t, outOf(t, dir), "ready")
	s, err := a.Adopt(t.Context(), "adopted", filepath.Join(dir, "detach"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = s.Signal(unix.SIGKILL)
		_, _ = s.Wait(t.Context())
	}()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	rollup, err := os.ReadFile("/proc/" + strings.Fields(rest)[1] + "/smaps_rollup")
	if err != nil {
		t.Skip("needs to look into the holder: ", err)
	}
	kib := 0
	for line := range strings.Lines(string(rollup)) {
		var n int
		if c, _ := fmt.Sscanf(line, "Private_Clean: %d", &n); c == 1 {
			kib += n
		}
		if c, _ := fmt.Sscanf(line, "Private_Dirty: %d", &n); c == 1 {
			kib += n
		}
	}
	t.Logf("private memory of the holder: %d KiB", kib)
	if kib == 0 || kib > 512 {
		t.Errorf("private memory of the holder: %d KiB", kib)
	}
}

func TestAdoptingNothing(t *testing.T) {
	if _, err := adopter(t).Adopt(t.Context(), "adopted", t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestDetachedStartThatFailsLeavesItsDirectoryEmpty(t *testing.T) {
	b := sandboxtest.New(t, executor(t, sandbox.Options{}))
	dir := detachDir(t)
	r := detachable(b, dir, "true")
	r.Spec.Process.Args = []string{"no-such"}
	_, err := b.Exec.Start(t.Context(), r)
	if e := (*sandbox.ExecError)(nil); !errors.As(err, &e) || e.Code != 127 {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(r.Detach); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
	for _, f := range r.Hold {
		f.Close()
	}
	wantNothingLeft(t, dir, b.Upper, 0)
}

func BenchmarkTrueDetached(b *testing.B) {
	bench := sandboxtest.New(b, executor(b, sandbox.Options{}))
	r := bench.RequestFor(sandbox.SpecOptions{Args: []string{"/bin/true"}})
	r.Detach = b.TempDir()
	for b.Loop() {
		s, err := bench.Exec.Start(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		bench.Renew()
		for _, e := range []string{"state", "records", "control", "alive"} {
			_ = os.Remove(filepath.Join(r.Detach, e))
		}
		b.StartTimer()
	}
}

func BenchmarkExecTrue(b *testing.B) {
	bench := sandboxtest.New(b, executor(b, sandbox.Options{}))
	s, err := bench.Exec.Start(b.Context(), bench.Request("sleep 1000"))
	if err != nil {
		b.Fatal(err)
	}
	r := bench.RequestFor(sandbox.SpecOptions{Args: []string{"/bin/true"}})
	for b.Loop() {
		e, err := s.(sandbox.Execer).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: r.Spec.Process})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Signal(unix.SIGKILL)
	_, _ = s.Wait(b.Context())
}

func TestLimitsOfAnAdoptedSandboxAreChangedAndItsCgroupGoes(t *testing.T) {
	a := adopter(t)
	dir := detachDir(t)
	upper, pid := startedAndKilled(t, dir, "echo ready; read x; dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null || echo bounded; read x")
	out := outOf(t, dir)
	wantLine(t, out, "ready")
	adopt := func(id string) sandbox.Sandbox {
		t.Helper()
		s, err := a.Adopt(t.Context(), id, filepath.Join(dir, "detach"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	err := adopt("adopted").(sandbox.Limiter).SetLimits(t.Context(), sandboxtest.Limited(16<<20, 0, 0))
	if errdefs.IsUnavailable(err) {
		t.Skip("needs a cgroup: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Who adopts it after that knows of the cgroup, and can change it once more.
	s := adopt("again")
	if st, err := s.(sandbox.Inspector).Stats(t.Context()); err != nil || st.MemoryLimitBytes != 16<<20 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := s.(sandbox.Limiter).SetLimits(t.Context(), sandboxtest.Limited(16<<20, 30, 0)); err != nil {
		t.Fatal(err)
	}
	if st, err := s.(sandbox.Inspector).Stats(t.Context()); err != nil || st.PidsLimit != 30 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "bounded")
	if err := s.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || !exit.OOMKilled {
		t.Errorf("exit is %+v, %v", exit, err)
	}
	wantNothingLeft(t, dir, upper, pid)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/den-a*"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}
