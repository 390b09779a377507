package sentry_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// eaterEnv makes this test's binary a program that takes memory in the way that the variable names.
const eaterEnv = "DEN_TEST_EATER"

const (
	eaten      = 1 << 30
	eaterLimit = 64 << 20
)

// eat takes more memory in one call than it may have.
func eat(how string) error {
	flags := unix.MAP_PRIVATE | unix.MAP_ANON
	switch how {
	case "populate":
		flags |= unix.MAP_POPULATE
	case "map locked":
		flags |= unix.MAP_LOCKED
	case "lock all":
		if err := unix.Mlockall(unix.MCL_FUTURE); err != nil {
			return err
		}
	}
	b, err := unix.Mmap(-1, 0, eaten, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return err
	}
	if how == "lock" {
		if err := unix.Mlock(b); err != nil {
			return err
		}
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return nil
}

// A call that takes a gigabyte at once is stopped not far beyond the limit.
func TestMemoryTakenInOneCallIsBounded(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	if err := copyTo("/proc/self/exe", filepath.Join(b.Lower, "eater")); err != nil {
		t.Fatal(err)
	}
	limit := int64(eaterLimit)
	for _, how := range []string{"populate", "map locked", "lock", "lock all"} {
		r := b.RequestFor(sandbox.SpecOptions{
			Args: []string{"/eater"}, Env: []string{eaterEnv + "=" + how}, Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
		})
		r.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: 2 * eaten, Hard: 2 * eaten}}
		var said sandboxtest.Buffer
		r.Stderr = &said
		s, err := b.Exec.Start(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		peak := make(chan int64)
		go func() { peak <- peakOf(s.Pid(), done) }()
		exit, err := s.Wait(t.Context())
		close(done)
		most := <-peak
		if err != nil || exit.Signal != unix.SIGKILL || !exit.OOMKilled {
			t.Errorf("%s: %+v, %v: %s", how, exit, err, said.String())
		}
		if most > eaten/2 {
			t.Errorf("%s: it had %d MiB, and a limit of %d MiB", how, most>>20, limit>>20)
		}
		t.Logf("%s: %d MiB", how, most>>20)
	}
}

// peakOf is the most that a sentry's memory file had, as far as somebody looked.
func peakOf(pid int, done <-chan struct{}) (most int64) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	var name string
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.Contains(to, "den-memory") {
			name = l
		}
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	for {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			most = max(most, st.Blocks*512)
		}
		select {
		case <-done:
			return most
		case <-time.After(time.Millisecond):
		}
	}
}

func copyTo(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// What takes memory in the sentry's own hands, which a kill of the payload does not reach, ends with the sentry.
func TestMemoryFilledByTheSentryIsBounded(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	limit := int64(eaterLimit)
	r := b.RequestFor(sandbox.SpecOptions{
		Args: []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=1024M", "count=1"}, Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
	})
	var said sandboxtest.Buffer
	r.Stderr = &said
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := s.Wait(t.Context())
	if !exit.OOMKilled || exit.Signal != unix.SIGKILL || err != nil && !strings.Contains(err.Error(), "far more than 64 MiB of memory at once") {
		t.Errorf("%+v, %v: %s", exit, err, said.String())
	}
}
