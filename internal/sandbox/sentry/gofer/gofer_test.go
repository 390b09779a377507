package gofer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	gcontext "gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/unet"

	"den/internal/sys"
)

// A client is what the sentry is to a tree.
type client struct {
	t    testing.TB
	ctx  gcontext.Context
	c    *lisafs.Client
	root lisafs.ClientFD
	stop func()
}

func openRoot(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// serve serves path and returns the client's end.
func serve(t testing.TB, path string, o Options) (conn int, stop func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	root := openRoot(t, path)
	go func() { done <- Serve(ctx, os.NewFile(uintptr(fds[0]), "server"), root, o) }()
	return fds[1], func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	}
}

func mount(t testing.TB, path string, o Options) *client {
	t.Helper()
	fd, stop := serve(t, path, o)
	c := connect(t, fd)
	c.stop = func() {
		c.stop = func() {}
		c.c.Close()
		stop()
	}
	t.Cleanup(func() { c.stop() })
	return c
}

// connect mounts what is served at the other end of fd.
func connect(t testing.TB, fd int) *client {
	t.Helper()
	sock, err := unet.NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	lc, root, _, err := lisafs.NewClient(sock)
	if err != nil {
		t.Fatal(err)
	}
	if err := lc.StartChannels(); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, ctx: gcontext.Background(), c: lc, root: lc.NewFD(root.ControlFD)}
}

func (c *client) ok(what string, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// inode makes a handle of an answer.
func (c *client) inode(i lisafs.Inode, err error) (lisafs.ClientFD, lisafs.Statx) {
	c.t.Helper()
	c.ok("make", err)
	return c.c.NewFD(i.ControlFD), i.Stat
}

// walk goes down names from the root.
func (c *client) walk(names ...string) (lisafs.ClientFD, lisafs.Statx) {
	c.t.Helper()
	if len(names) == 0 {
		return c.root, c.stat(c.root)
	}
	_, inodes, err := c.root.WalkMultiple(c.ctx, names)
	if err != nil || len(inodes) != len(names) {
		c.t.Fatalf("walk %v: %d found, %v", names, len(inodes), err)
	}
	last := inodes[len(inodes)-1]
	return c.c.NewFD(last.ControlFD), last.Stat
}

func (c *client) stat(f lisafs.ClientFD) (st lisafs.Statx) {
	c.t.Helper()
	c.ok("stat", f.StatTo(c.ctx, &st))
	return st
}

// exists says whether a name is in the root.
func (c *client) exists(name string) bool {
	c.t.Helper()
	stats, err := c.root.WalkStat(c.ctx, []string{name})
	c.ok("walk "+name, err)
	return len(stats) == 1
}

// create makes a regular file with content and returns its handle.
func (c *client) create(dir lisafs.ClientFD, name, content string, mode linux.FileMode, uid, gid uint32) lisafs.ClientFD {
	c.t.Helper()
	i, open, host, err := dir.OpenCreateAt(c.ctx, name, unix.O_RDWR, mode, lisafs.UID(uid), lisafs.GID(gid))
	c.ok("create "+name, err)
	if host < 0 {
		c.t.Errorf("%s: no descriptor was given", name)
	}
	_ = unix.Close(host)
	o := c.c.NewFD(open)
	if content != "" {
		n, err := o.Write(c.ctx, []byte(content), 0)
		c.ok("write "+name, err)
		if int(n) != len(content) {
			c.t.Fatalf("write %s: %d bytes", name, n)
		}
	}
	o.Close(c.ctx, true)
	return c.c.NewFD(i.ControlFD)
}

// read returns what a file holds.
func (c *client) read(f lisafs.ClientFD) string {
	c.t.Helper()
	open, host, err := f.OpenAt(c.ctx, unix.O_RDONLY)
	c.ok("open", err)
	defer func() { _ = unix.Close(host) }()
	o := c.c.NewFD(open)
	defer o.Close(c.ctx, true)
	buf := make([]byte, 1<<16)
	n, err := o.Read(c.ctx, buf, 0)
	if err != nil && n > 0 {
		c.t.Fatalf("read: %v", err)
	}
	return string(buf[:n])
}

// set changes what mask says.
func (c *client) set(f lisafs.ClientFD, st linux.Statx) error {
	c.t.Helper()
	failed, failure, err := f.SetStat(c.ctx, &st)
	c.ok("setstat", err)
	if failed != 0 {
		return failure
	}
	return nil
}

func (c *client) chown(f lisafs.ClientFD, uid, gid uint32) error {
	c.t.Helper()
	return c.set(f, linux.Statx{Mask: linux.STATX_UID | linux.STATX_GID, UID: uid, GID: gid})
}

func (c *client) chmod(f lisafs.ClientFD, mode uint16) error {
	c.t.Helper()
	return c.set(f, linux.Statx{Mask: linux.STATX_MODE, Mode: mode})
}

// is checks what a file is said to be.
func (c *client) is(st lisafs.Statx, mode, uid, gid uint32) {
	c.t.Helper()
	if uint32(st.Mode) != mode || st.UID != uid || st.GID != gid {
		c.t.Errorf("%#o %d:%d, want %#o %d:%d", st.Mode, st.UID, st.GID, mode, uid, gid)
	}
}

// ways are the ways to keep owners that this process has.
func ways() map[string]Owners {
	if sys.MayChown() {
		return map[string]Owners{"recorded": Recorded, "real": Real}
	}
	return map[string]Owners{"recorded": Recorded}
}

// eachWay runs a test with the ways to keep owners that this process has.
func eachWay(t *testing.T, test func(t *testing.T, c *client, dir string)) {
	for name, way := range ways() {
		t.Run(name, func(t *testing.T) {
			dir := xattrDir(t)
			test(t, mount(t, dir, Options{Owners: way}), dir)
		})
	}
}

// xattrDir is a directory on a file system with user attributes.
func xattrDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.trial", []byte("y"), 0); err != nil {
		t.Skipf("%s keeps no user attributes: %v", dir, err)
	}
	_ = unix.Removexattr(dir, "user.trial")
	return dir
}

func TestFilesAreWrittenAndRead(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		f := c.create(c.root, "f", "hello", 0o644, 0, 0)
		if got := c.read(f); got != "hello" {
			t.Errorf("read %q", got)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, "f")); string(b) != "hello" {
			t.Errorf("on disk: %q", b)
		}
		open, _, err := f.OpenAt(c.ctx, unix.O_RDONLY)
		c.ok("open", err)
		o := c.c.NewFD(open)
		if _, err := o.Write(c.ctx, []byte("x"), 0); err != unix.EBADF {
			t.Errorf("write to a file opened for reading: %v", err)
		}
		c.ok("sync", o.Sync(c.ctx))
		if _, err := o.Read(c.ctx, make([]byte, 1), 1<<63); err != unix.EINVAL {
			t.Error("read at a negative offset")
		}
		_, _, _, err = c.root.OpenCreateAt(c.ctx, "f", unix.O_RDWR, 0o644, 0, 0)
		if err != unix.EEXIST {
			t.Errorf("create what exists: %v", err)
		}
		w, _, err := f.OpenAt(c.ctx, unix.O_WRONLY|unix.O_TRUNC)
		c.ok("truncate", err)
		wo := c.c.NewFD(w)
		c.ok("allocate", wo.Allocate(c.ctx, 0, 20, 100))
		if st := c.stat(f); st.Size != 120 {
			t.Errorf("size %d", st.Size)
		}
	})
}

func TestOwnersAndModesComeBack(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		f := c.create(c.root, "f", "x", 0o640, 999, 70)
		c.is(c.stat(f), unix.S_IFREG|0o640, 999, 70)
		d, st := c.inode(c.root.MkdirAt(c.ctx, "d", 0o700, 999, 999))
		c.is(st, unix.S_IFDIR|0o700, 999, 999)
		c.ok("chmod", c.chmod(d, 0o3070))
		c.is(c.stat(d), unix.S_IFDIR|0o3070, 999, 999)
		c.ok("chmod", c.chmod(f, 0o4000))
		c.ok("chown", c.chown(f, 1234, 5))
		_, st = c.walk("f")
		c.is(st, unix.S_IFREG|0o4000, 1234, 5)
		if got := c.read(f); got != "x" {
			t.Errorf("a file without permissions reads %q", got)
		}
		c.create(d, "inside", "y", 0o400, 0, 0)
		_, st = c.walk("d", "inside")
		c.is(st, unix.S_IFREG|0o400, 0, 0)
		stats, err := c.root.WalkStat(c.ctx, []string{"", "d", "inside"})
		c.ok("walkstat", err)
		if len(stats) != 3 || stats[1].UID != 999 {
			t.Errorf("walkstat: %+v", stats)
		}
	})
}

func TestSecondServerSeesTheFirstOnesOwners(t *testing.T) {
	dir := xattrDir(t)
	c := mount(t, dir, Options{})
	c.create(c.root, "f", "", 0o600, 26, 26)
	_, _ = c.inode(c.root.SymlinkAt(c.ctx, "l", "f", 26, 27))
	_, _ = c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 3, 3, 1))
	_, _ = c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o600, 8, 9, 0, 0))
	c.ok("chown", c.chown(c.root, 26, 26))
	c.ok("chmod", c.chmod(c.root, 0o700))
	c.stop()
	c = mount(t, dir, Options{})
	for name, want := range map[string][3]uint32{
		"f": {unix.S_IFREG | 0o600, 26, 26}, "l": {unix.S_IFLNK | 0o777, 26, 27},
		"null": {unix.S_IFCHR | 0o666, 0, 3}, "pipe": {unix.S_IFIFO | 0o600, 8, 9},
	} {
		f, st := c.walk(name)
		c.is(st, want[0], want[1], want[2])
		c.is(c.stat(f), want[0], want[1], want[2])
		if name == "null" && (st.RdevMajor != 1 || st.RdevMinor != 3) {
			t.Errorf("device %d:%d", st.RdevMajor, st.RdevMinor)
		}
	}
	c.is(c.stat(c.root), unix.S_IFDIR|0o700, 26, 26)
}

func TestFilesThatWereThereAreRoots(t *testing.T) {
	dir := xattrDir(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	c := mount(t, dir, Options{Owners: Recorded})
	for _, name := range []string{"f", "l"} {
		if _, st := c.walk(name); st.UID != 0 || st.GID != 0 {
			t.Errorf("%s: %d:%d", name, st.UID, st.GID)
		}
	}
	if names, err := unix.Listxattr(dir, nil); err != nil || names != 0 {
		t.Errorf("looking wrote attributes: %d, %v", names, err)
	}
}

func TestRootOpensWhatItsModeForbids(t *testing.T) {
	dir := xattrDir(t)
	for name, mode := range map[string]os.FileMode{"none": 0, "read": 0o444} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o700), os.Chmod(filepath.Join(dir, "d"), 0)); err != nil {
		t.Fatal(err)
	}
	c := mount(t, dir, Options{Owners: Recorded})
	none, st := c.walk("none")
	c.is(st, unix.S_IFREG, 0, 0)
	if got := c.read(none); got != "x" {
		t.Errorf("read %q", got)
	}
	c.is(c.stat(none), unix.S_IFREG, 0, 0)
	read, _ := c.walk("read")
	c.ok("setxattr", read.SetXattr(c.ctx, "user.a", "b", 0))
	d, _ := c.walk("d")
	c.create(d, "inside", "", 0o600, 0, 0)
	c.is(c.stat(d), unix.S_IFDIR, 0, 0)
	_, st = c.walk("d", "inside")
	c.is(st, unix.S_IFREG|0o600, 0, 0)
}
