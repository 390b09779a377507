package gofer

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/log"
)

// childEnv makes the test binary a gofer process: the connection is descriptor
// 3, the tree 4.
const childEnv = "DEN_TEST_GOFER"

func TestMain(m *testing.M) {
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) // a hostile client makes it talk
	way, isChild := os.LookupEnv(childEnv)
	if !isChild {
		os.Exit(m.Run())
	}
	if err := childMain(way); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childMain(way string) error {
	owners, err := strconv.Atoi(way)
	if err != nil {
		return err
	}
	unix.Umask(0)
	t, err := Open(os.NewFile(4, "tree"), Options{Owners: Owners(owners)})
	if err != nil {
		return err
	}
	if err := Confine(); err != nil {
		return err
	}
	return t.Serve(context.Background(), os.NewFile(3, "conn"))
}

// child serves path in a confined process of its own. What it says when it
// dies is nobody's.
func child(t *testing.T, path string, way Owners) (conn int, cmd *exec.Cmd) {
	t.Helper()
	if cgo {
		t.Skip("needs a test built with CGO_ENABLED=0")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	server, root := os.NewFile(uintptr(fds[0]), "server"), openRoot(t, path)
	defer func() { _, _ = server.Close(), root.Close() }()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+strconv.Itoa(int(way)))
	cmd.ExtraFiles = []*os.File{server, root}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return fds[1], cmd
}

func TestConfinedProcessServesAll(t *testing.T) {
	for _, way := range ways() {
		dir := xattrDir(t)
		conn, cmd := child(t, dir, way)
		c := connect(t, conn)
		f := c.create(c.root, "f", "hello", 0o4640, 70, 71)
		if got := c.read(f); got != "hello" {
			t.Errorf("read %q", got)
		}
		c.is(c.stat(f), unix.S_IFREG|0o4640, 70, 71)
		c.ok("set", c.set(f, linux.Statx{
			Mask: linux.STATX_MODE | linux.STATX_UID | linux.STATX_SIZE | linux.STATX_MTIME | linux.STATX_ATIME,
			Mode: 0o600, UID: 5, Size: 2, Mtime: linux.StatxTimestamp{Sec: 1}, Atime: linux.StatxTimestamp{Nsec: linux.UTIME_NOW},
		}))
		d, _ := c.inode(c.root.MkdirAt(c.ctx, "d", 0o1777, 5, 5))
		_, _ = c.inode(c.root.SymlinkAt(c.ctx, "l", "f", 5, 6))
		_, _ = c.inode(c.root.LinkAt(c.ctx, f.ID(), "g"))
		_, _ = c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 0, 3, 1))
		_, _ = c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o600, 8, 9, 0, 0))
		c.ok("rename", c.root.RenameAt(c.ctx, "l", d.ID(), "m", 0))
		c.ok("exchange", c.root.RenameAt(c.ctx, "pipe", d.ID(), "m", unix.RENAME_EXCHANGE))
		l, _ := c.walk("pipe")
		if target, err := l.ReadLinkAt(c.ctx); err != nil || target != "f" {
			t.Errorf("%q, %v", target, err)
		}
		c.ok("chown", c.chown(l, 1, 1))
		c.ok("setxattr", f.SetXattr(c.ctx, "user.a", "b", 0))
		_, err := f.GetXattr(c.ctx, "user.a", 10)
		c.ok("getxattr", err)
		_, err = f.ListXattr(c.ctx, 100)
		c.ok("listxattr", err)
		c.ok("removexattr", f.RemoveXattr(c.ctx, "user.a"))
		open, _, err := f.OpenAt(c.ctx, unix.O_RDWR)
		c.ok("open", err)
		o := c.c.NewFD(open)
		c.ok("allocate", o.Allocate(c.ctx, 0, 0, 100))
		c.ok("sync", o.Sync(c.ctx))
		if len(c.list(c.root)) != 5 {
			t.Errorf("%v", c.list(c.root))
		}
		var fs lisafs.StatFS
		c.ok("statfs", c.root.StatFSTo(c.ctx, &fs))
		_, bound, err := c.root.BindAt(c.ctx, unix.SOCK_STREAM, "s", 0o600, 0, 0)
		c.ok("bind", err)
		c.ok("listen", bound.Listen(c.ctx, 1))
		s, _ := c.walk("s")
		_, err = s.Connect(c.ctx, unix.SOCK_STREAM, lisafs.NoUID, lisafs.NoGID)
		c.ok("connect", err)
		_, err = bound.Accept(c.ctx)
		c.ok("accept", err)
		for _, name := range []string{"f", "g", "pipe", "s"} {
			c.ok("unlink", c.root.UnlinkAt(c.ctx, name, 0))
		}
		c.c.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("gofer: %v", err)
		}
	}
}

// field is the first word behind a name in text.
func field(text, name string) string {
	_, rest, _ := strings.Cut(text, name)
	words := strings.Fields(rest)
	if len(words) == 0 {
		return ""
	}
	return words[0]
}

func TestConfinedProcessCanDoNothingElse(t *testing.T) {
	dir := xattrDir(t)
	conn, cmd := child(t, dir, Recorded)
	c := connect(t, conn)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	c.ok("status", err)
	if mode := field(string(status), "Seccomp:"); mode != "2" {
		t.Errorf("seccomp mode %q", mode)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	c.ok("limits", err)
	if got := field(string(limits), "Max data size"); got != strconv.Itoa(maxMemoryBytes) {
		t.Errorf("data size %q", got)
	}
	c.c.Close()
	_ = cmd.Wait()
}
