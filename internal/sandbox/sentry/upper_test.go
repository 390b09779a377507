package sentry_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// What a sandbox kept its changes in is empty before it is closed for the last time, or ext4
// would write all of it to the disk.
func TestWhatASandboxKeptItsChangesInIsNotWrittenToDisk(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	b := sandboxtest.New(t, e)
	r := b.Request("echo changed >/file; echo ready; read line")
	r.Root.Upper = filepath.Join(t.TempDir(), "image")
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	r.Stdin, r.Stdout = in, out
	s, err := e.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	upper := openUpper(t, s.Pid(), filepath.Dir(r.Root.Upper))
	if size := sizeOf(t, upper); size == 0 {
		t.Error("nothing is kept in it")
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if size := sizeOf(t, upper); size != 0 {
		t.Errorf("%d bytes are still kept in it", size)
	}
	if size := sizeOf(t, openFile(t, r.Root.Upper)); size == 0 {
		t.Error("the changes are lost")
	}
}

// openUpper opens the file without a name in dir, or in memory, that a process has open.
func openUpper(t *testing.T, pid int, dir string) *os.File {
	t.Helper()
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range entries {
		to, err := os.Readlink(filepath.Join(fds, fd.Name()))
		if err == nil && (strings.HasPrefix(to, dir+"/") && strings.HasSuffix(to, " (deleted)") || strings.HasPrefix(to, "/memfd:upper")) {
			return openFile(t, filepath.Join(fds, fd.Name()))
		}
	}
	t.Fatalf("none of the %d files is in %s", len(entries), dir)
	return nil
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func sizeOf(t *testing.T, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
