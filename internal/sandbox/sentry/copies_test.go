package sentry_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// forkerEnv makes this test's binary a program that shares its memory with a child.
const forkerEnv = "DEN_TEST_FORKER"

// What a forker has of each kind of memory, and how often it writes there once it is shared.
const (
	sharedBytes  = 32 << 20
	sharedWrites = 16
)

// brk is the end of the heap, which it moves there first.
func brk(to uintptr) uintptr {
	end, _, _ := unix.RawSyscall(unix.SYS_BRK, to, 0, 0)
	return end
}

// forker fills memory of both kinds, says so, shares it with a child, in which and in itself it then writes a little,
// and says so again. The heap it makes shorter and longer before, which empties it.
func forker() error {
	mapped, err := unix.Mmap(-1, 0, sharedBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	from := brk(0)
	if brk(from+sharedBytes) != from+sharedBytes {
		return errors.New("no heap")
	}
	heap := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), from)), sharedBytes)
	heap[sharedBytes-1] = 1
	if brk(from+sharedBytes/2) != from+sharedBytes/2 || brk(from+sharedBytes) != from+sharedBytes || heap[sharedBytes-1] != 0 {
		return errors.New("what is given back and taken again is not empty")
	}
	for _, kind := range [][]byte{mapped, heap} {
		for i := 0; i < sharedBytes; i += 4096 {
			kind[i] = 1
		}
	}
	fmt.Println("filled")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if errno != 0 {
		return errno
	}
	mark := byte(2)
	if pid == 0 {
		mark = 3
	}
	for i := range sharedWrites {
		mapped[i*(sharedBytes/sharedWrites)], heap[i*(sharedBytes/sharedWrites)] = mark, mark
	}
	if pid == 0 { // only system calls from here: the threads of the runtime are the parent's
		said := [2]byte{'w', '\n'}
		_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&said)), 2)
		for {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, kind := range [][]byte{mapped, heap} {
		if kind[0] != 2 || kind[4096] != 1 {
			return fmt.Errorf("its memory is %d, %d", kind[0], kind[4096])
		}
	}
	return unix.Kill(int(pid), unix.SIGKILL)
}

// Of memory that two processes share since a fork, little is copied when one of them writes there.
func TestLittleIsCopiedWhereAProcessWritesThatHasForked(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	if err := copyTo("/proc/self/exe", filepath.Join(b.Lower, "forker")); err != nil {
		t.Fatal(err)
	}
	r := b.RequestFor(sandbox.SpecOptions{Args: []string{"/forker"}, Env: []string{forkerEnv + "=1"}})
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	var trouble sandboxtest.Buffer
	r.Stdin, r.Stdout, r.Stderr = in, out, &trouble
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	now := make(chan struct{})
	close(now)
	lines := bufio.NewReader(stdout)
	if line, err := lines.ReadString('\n'); err != nil || line != "filled\n" {
		t.Fatalf("%q, %v: %s", line, err, trouble.String())
	}
	before := peakOf(s.Pid(), now)
	if _, err := io.WriteString(stdin, "x"); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "w\n" {
		t.Fatalf("%q, %v: %s", line, err, trouble.String())
	}
	more := peakOf(s.Pid(), now) - before
	if before < 2*sharedBytes || more > 16<<20 {
		t.Errorf("of %d MiB %d were copied for %d writes", before>>20, more>>20, 2*sharedWrites)
	}
	stdin.Close()
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v: %s", exit, err, trouble.String())
	}
}
