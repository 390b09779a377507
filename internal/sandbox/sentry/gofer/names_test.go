package gofer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

func TestLinksAreOnlyRead(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		l, st := c.inode(c.root.SymlinkAt(c.ctx, "l", "/etc", 5, 6))
		c.is(st, unix.S_IFLNK|0o777, 5, 6)
		target, err := l.ReadLinkAt(c.ctx)
		c.ok("readlink", err)
		if target != "/etc" {
			t.Errorf("target %q", target)
		}
		status, inodes, err := c.root.WalkMultiple(c.ctx, []string{"l", "passwd"})
		c.ok("walk", err)
		if len(inodes) != 1 || status != lisafs.WalkComponentSymlink {
			t.Errorf("walked through a link: %d, %v", len(inodes), status)
		}
		stats, err := c.root.WalkStat(c.ctx, []string{"l", "passwd"})
		c.ok("walkstat", err)
		if len(stats) != 1 {
			t.Errorf("walked through a link: %d", len(stats))
		}
		if _, _, err := l.OpenAt(c.ctx, unix.O_RDONLY); err == nil {
			t.Error("a link was opened")
		}
		if err := c.chmod(l, 0o600); err != unix.EOPNOTSUPP {
			t.Errorf("chmod of a link: %v", err)
		}
		c.ok("chown", c.chown(l, 70, 71))
		c.is(c.stat(l), unix.S_IFLNK|0o777, 70, 71)
		c.ok("utimes", c.set(l, linux.Statx{Mask: linux.STATX_MTIME, Mtime: linux.StatxTimestamp{Sec: 77}}))
		if st := c.stat(l); st.Mtime.Sec != 77 {
			t.Errorf("mtime %d", st.Mtime.Sec)
		}
		long := strings.Repeat("x", unix.PathMax-1)
		ll, _ := c.inode(c.root.SymlinkAt(c.ctx, "long", long, 0, 0))
		if got, err := ll.ReadLinkAt(c.ctx); err != nil || got != long {
			t.Errorf("long target: %d bytes, %v", len(got), err)
		}
	})
}

func TestLinkKeepsItsOwnerWhereverItIsMoved(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		_, _ = c.inode(c.root.SymlinkAt(c.ctx, "a", "x", 5, 6))
		_, _ = c.inode(c.root.SymlinkAt(c.ctx, "b", "y", 7, 8))
		_, _ = c.inode(c.root.SymlinkAt(c.ctx, "roots", "y", 0, 0))
		d, _ := c.inode(c.root.MkdirAt(c.ctx, "d", 0o755, 0, 0))
		is := func(uid, gid uint32, names ...string) {
			t.Helper()
			f, st := c.walk(names...)
			c.is(st, unix.S_IFLNK|0o777, uid, gid)
			c.is(c.stat(f), unix.S_IFLNK|0o777, uid, gid)
		}
		c.ok("rename", c.root.RenameAt(c.ctx, "a", d.ID(), "moved", 0))
		is(5, 6, "d", "moved")
		c.ok("exchange", c.root.RenameAt(c.ctx, "b", d.ID(), "moved", unix.RENAME_EXCHANGE))
		is(5, 6, "b")
		is(7, 8, "d", "moved")
		moved, _ := c.walk("d", "moved")
		_, st := c.inode(c.root.LinkAt(c.ctx, moved.ID(), "linked"))
		c.is(st, unix.S_IFLNK|0o777, 7, 8)
		is(7, 8, "linked")
		c.ok("replace", c.root.RenameAt(c.ctx, "roots", c.root.ID(), "b", 0))
		is(0, 0, "b")
		c.ok("unlink", c.root.UnlinkAt(c.ctx, "linked", 0))
		_, _ = c.inode(c.root.SymlinkAt(c.ctx, "linked", "new", 0, 0))
		is(0, 0, "linked")
		c.create(c.root, "file", "", 0o600, 1, 1)
		c.ok("replace", c.root.RenameAt(c.ctx, "file", d.ID(), "moved", 0))
		_, st = c.walk("d", "moved")
		c.is(st, unix.S_IFREG|0o600, 1, 1)
		n, err := sys.RecordedNames(int(openDir(t, filepath.Join(dir, "d")).Fd()), sys.Self())
		if err != nil || len(n.Of) != 0 {
			t.Errorf("left in the directory: %+v, %v", n, err)
		}
	})
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestHardLinksAreOneFile(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		f := c.create(c.root, "f", "x", 0o600, 5, 5)
		_, st := c.inode(c.root.LinkAt(c.ctx, f.ID(), "g"))
		if st.Ino != c.stat(f).Ino || st.Nlink != 2 {
			t.Errorf("%+v", st)
		}
		c.ok("chown", c.chown(f, 9, 9))
		g, st := c.walk("g")
		c.is(st, unix.S_IFREG|0o600, 9, 9)
		c.ok("unlink", c.root.UnlinkAt(c.ctx, "f", 0))
		if got := c.read(g); got != "x" {
			t.Errorf("read %q", got)
		}
		if _, err := c.root.LinkAt(c.ctx, c.root.ID(), "d"); err != unix.EPERM {
			t.Errorf("link to a directory: %v", err)
		}
	})
}

func TestRemovedFileStaysUsable(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		f := c.create(c.root, "f", "old", 0o600, 5, 5)
		open, _, err := f.OpenAt(c.ctx, unix.O_RDWR)
		c.ok("open", err)
		o := c.c.NewFD(open)
		c.ok("unlink", c.root.UnlinkAt(c.ctx, "f", 0))
		if c.exists("f") {
			t.Error("it is still there")
		}
		c.create(c.root, "f", "new", 0o644, 0, 0)
		c.ok("chown", c.chown(f, 8, 8))
		c.is(c.stat(o), unix.S_IFREG|0o600, 8, 8)
		c.ok("truncate", c.set(f, linux.Statx{Mask: linux.STATX_SIZE, Size: 1}))
		again, st := c.walk("f")
		c.is(st, unix.S_IFREG|0o644, 0, 0)
		if got := c.read(again); got != "new" {
			t.Errorf("the new file holds %q", got)
		}
		d, _ := c.inode(c.root.MkdirAt(c.ctx, "d", 0o755, 0, 0))
		c.create(d, "x", "", 0o600, 0, 0)
		if err := c.root.UnlinkAt(c.ctx, "d", unix.AT_REMOVEDIR); err != unix.ENOTEMPTY {
			t.Errorf("rmdir: %v", err)
		}
		c.ok("unlink", d.UnlinkAt(c.ctx, "x", 0))
		c.ok("rmdir", c.root.UnlinkAt(c.ctx, "d", unix.AT_REMOVEDIR))
		if _, err := d.MkdirAt(c.ctx, "below", 0o755, 0, 0); err == nil {
			t.Error("a directory was made in a removed one")
		}
	})
}

func TestRenamedFileIsFound(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		d, _ := c.inode(c.root.MkdirAt(c.ctx, "d", 0o755, 3, 3))
		f := c.create(d, "f", "x", 0o600, 4, 4)
		c.ok("rename", c.root.RenameAt(c.ctx, "d", c.root.ID(), "e", 0))
		_, st := c.walk("e", "f")
		c.is(st, unix.S_IFREG|0o600, 4, 4)
		c.ok("chmod", c.chmod(f, 0o640))
		c.create(c.root, "other", "", 0o600, 0, 0)
		if err := c.root.RenameAt(c.ctx, "other", d.ID(), "f", unix.RENAME_NOREPLACE); err != unix.EEXIST {
			t.Errorf("noreplace: %v", err)
		}
		if err := c.root.RenameAt(c.ctx, "other", d.ID(), "f", unix.RENAME_WHITEOUT); err != unix.EINVAL {
			t.Errorf("whiteout: %v", err)
		}
		if err := c.root.RenameAt(c.ctx, "gone", d.ID(), "f", 0); err != unix.ENOENT {
			t.Errorf("missing: %v", err)
		}
	})
}

func TestNodesStandForThemselves(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		null, st := c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 0, 3, 1))
		c.is(st, unix.S_IFCHR|0o666, 0, 0)
		_, st = c.inode(c.root.MknodAt(c.ctx, "sda", linux.ModeBlockDevice|0o660, 0, 6, 0, 8))
		c.is(st, unix.S_IFBLK|0o660, 0, 6)
		pipe, st := c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o620, 5, 5, 0, 0))
		c.is(st, unix.S_IFIFO|0o620, 5, 5)
		_, st = c.inode(c.root.MknodAt(c.ctx, "file", linux.ModeRegular|0o600, 5, 5, 0, 0))
		c.is(st, unix.S_IFREG|0o600, 5, 5)
		if _, err := c.root.MknodAt(c.ctx, "sock", linux.ModeSocket|0o600, 0, 0, 0, 0); err != unix.EPERM {
			t.Errorf("socket: %v", err)
		}
		for _, name := range []string{"null", "sda"} {
			fi, err := os.Lstat(filepath.Join(dir, name))
			if err != nil || !fi.Mode().IsRegular() || fi.Size() != 0 {
				t.Errorf("%s on disk: %v, %v", name, fi.Mode(), err)
			}
		}
		if _, _, err := null.OpenAt(c.ctx, unix.O_RDWR); err != unix.ENXIO {
			t.Errorf("open a device: %v", err)
		}
		if err := c.set(null, linux.Statx{Mask: linux.STATX_SIZE, Size: 10}); err == nil {
			t.Error("a device was truncated")
		}
		c.ok("chown", c.chown(null, 7, 7))
		c.is(c.stat(null), unix.S_IFCHR|0o666, 7, 7)
		c.ok("chmod", c.chmod(pipe, 0o644))
		c.ok("rename", c.root.RenameAt(c.ctx, "pipe", c.root.ID(), "pipe2", 0))
		_, st = c.walk("pipe2")
		c.is(st, unix.S_IFIFO|0o644, 5, 5)
		d, _ := c.inode(c.root.MkdirAt(c.ctx, "d", 0o755, 0, 0))
		c.ok("rename", c.root.RenameAt(c.ctx, "null", d.ID(), "zero", 0))
		if types := c.list(d); types["zero"] != unix.DT_CHR {
			t.Errorf("listed as %d", types["zero"])
		}
		if types := c.list(c.root); types["sda"] != unix.DT_BLK || types["file"] != unix.DT_REG || types["pipe2"] != unix.DT_FIFO {
			t.Errorf("listed as %v", types)
		}
	})
}

// list returns the types of the entries of a directory.
func (c *client) list(d lisafs.ClientFD) map[string]int {
	c.t.Helper()
	open, _, err := d.OpenAt(c.ctx, unix.O_RDONLY)
	c.ok("open", err)
	o := c.c.NewFD(open)
	defer o.Close(c.ctx, true)
	types := map[string]int{}
	for count := int32(-64 << 10); ; count = 64 << 10 {
		entries, err := o.Getdents64(c.ctx, count)
		c.ok("getdents", err)
		if len(entries) == 0 {
			return types
		}
		for _, e := range entries {
			if types[string(e.Name)] != 0 {
				c.t.Errorf("%s is listed twice", e.Name)
			}
			types[string(e.Name)] = int(e.Type)
		}
	}
}

func TestLongDirectoryIsListedOnce(t *testing.T) {
	dir := xattrDir(t)
	for i := range 3000 {
		name := fmt.Sprintf("%s%05d", strings.Repeat("n", 100), i)
		if err := os.Symlink("x", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := mount(t, dir, Options{})
	if types := c.list(c.root); len(types) != 3000 {
		t.Errorf("%d entries", len(types))
	}
}

func TestPipeConnectsTheSandboxToOthers(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		pipe, _ := c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o600, 0, 0, 0, 0))
		if _, _, err := pipe.OpenAt(c.ctx, unix.O_WRONLY); err != unix.ENXIO {
			t.Errorf("open for writing without a reader: %v; looking at a pipe must not open it", err)
		}
		_, host, err := pipe.OpenAt(c.ctx, unix.O_RDONLY)
		c.ok("open", err)
		defer func() { _ = unix.Close(host) }()
		w, err := os.OpenFile(filepath.Join(dir, "pipe"), os.O_WRONLY, 0)
		c.ok("open", err)
		defer func() { _ = w.Close() }()
		_, err = w.WriteString("hi")
		c.ok("write", err)
		buf := make([]byte, 8)
		if n, err := unix.Read(host, buf); err != nil || string(buf[:n]) != "hi" {
			t.Errorf("%q, %v", buf[:n], err)
		}
	})
}

func TestSandboxConnectsToSocketsAndListens(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		i, bound, err := c.root.BindAt(c.ctx, unix.SOCK_STREAM, "s", 0o640, 70, 71)
		c.ok("bind", err)
		c.is(i.Stat, unix.S_IFSOCK|0o640, 70, 71)
		c.ok("listen", bound.Listen(c.ctx, 1))
		if _, err := bound.Accept(c.ctx); err != unix.EAGAIN {
			t.Errorf("accept without a peer: %v", err)
		}
		s, st := c.walk("s")
		c.is(st, unix.S_IFSOCK|0o640, 70, 71)
		peer, err := s.Connect(c.ctx, unix.SOCK_STREAM, lisafs.NoUID, lisafs.NoGID)
		c.ok("connect", err)
		defer func() { _ = unix.Close(peer) }()
		conn, err := bound.Accept(c.ctx)
		c.ok("accept", err)
		defer func() { _ = unix.Close(conn) }()
		if _, err := unix.Write(peer, []byte("hi")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 8)
		if n, err := unix.Read(conn, buf); err != nil || string(buf[:n]) != "hi" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if _, err := s.Connect(c.ctx, unix.SOCK_DGRAM, lisafs.NoUID, lisafs.NoGID); err != unix.EPROTOTYPE {
			t.Errorf("connect with another type: %v", err)
		}
		if _, _, err := c.root.BindAt(c.ctx, unix.SOCK_STREAM, strings.Repeat("s", 200), 0o600, 0, 0); err != unix.EPERM {
			t.Errorf("bind to a long name: %v", err)
		}
		f := c.create(c.root, "f", "", 0o600, 0, 0)
		if _, err := f.Connect(c.ctx, unix.SOCK_STREAM, lisafs.NoUID, lisafs.NoGID); err != unix.ENOTSOCK {
			t.Errorf("connect to a file: %v", err)
		}
		bound.Close(c.ctx)
		c.ok("unlink", c.root.UnlinkAt(c.ctx, "s", 0))
	})
}

func TestAttributesOfDenAreNotThere(t *testing.T) {
	eachWay(t, func(t *testing.T, c *client, dir string) {
		f := c.create(c.root, "f", "", 0o4711, 1000, 1000)
		c.ok("set", f.SetXattr(c.ctx, "user.a", "1", 0))
		if v, err := f.GetXattr(c.ctx, "user.a", 100); err != nil || v != "1" {
			t.Errorf("%q, %v", v, err)
		}
		if v, err := f.GetXattr(c.ctx, "user.a", 0); err != nil || v != "1" {
			t.Errorf("%q, %v", v, err)
		}
		forged := string(sys.Inode{Mode: unix.S_IFREG | 0o777}.Format())
		_ = unix.Setxattr(filepath.Join(dir, "f"), sys.DeviceAttr, []byte("c 1:3"), 0)
		for _, name := range []string{sys.InodeAttr, sys.NamesAttr, sys.DeviceAttr, "user.den.x", "user.den."} {
			if v, err := f.GetXattr(c.ctx, name, 100); err != unix.ENODATA {
				t.Errorf("get %s: %q, %v", name, v, err)
			}
			if err := f.SetXattr(c.ctx, name, forged, 0); err != unix.EPERM {
				t.Errorf("set %s: %v", name, err)
			}
			if err := f.RemoveXattr(c.ctx, name); err != unix.ENODATA {
				t.Errorf("remove %s: %v", name, err)
			}
		}
		for _, name := range []string{"trusted.x", "security.selinux", "system.posix_acl_access", "user.", "nonsense", ""} {
			if err := f.SetXattr(c.ctx, name, "x", 0); err != unix.EOPNOTSUPP {
				t.Errorf("set %q: %v", name, err)
			}
		}
		if names, err := f.ListXattr(c.ctx, 1000); err != nil || !slices.Equal(names, []string{"user.a"}) {
			t.Errorf("%v, %v", names, err)
		}
		c.ok("remove", f.RemoveXattr(c.ctx, "user.a"))
		if err := f.SetXattr(c.ctx, "user.b", "1", unix.XATTR_REPLACE); err != unix.ENODATA {
			t.Errorf("replace: %v", err)
		}
		c.is(c.stat(f), unix.S_IFREG|0o4711, 1000, 1000)
		null, _ := c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 0, 3, 1))
		if err := null.SetXattr(c.ctx, "user.a", "1", 0); err != unix.EPERM {
			t.Errorf("attribute on a device: %v", err)
		}
	})
}

func TestReadOnlyTreeIsNotChanged(t *testing.T) {
	dir := xattrDir(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "f"), "user.a", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	c := mount(t, dir, Options{ReadOnly: true})
	f, _ := c.walk("f")
	if got := c.read(f); got != "x" {
		t.Errorf("read %q", got)
	}
	open, host, err := f.OpenAt(c.ctx, unix.O_RDONLY)
	c.ok("open", err)
	if _, err := unix.Write(host, []byte("y")); err != unix.EBADF {
		t.Errorf("write by the given descriptor: %v", err)
	}
	o := c.c.NewFD(open)
	_, errWrite := o.Write(c.ctx, []byte("y"), 0)
	_, _, errOpen := f.OpenAt(c.ctx, unix.O_RDWR)
	_, _, errTrunc := f.OpenAt(c.ctx, unix.O_TRUNC)
	_, _, _, errCreate := c.root.OpenCreateAt(c.ctx, "new", unix.O_RDWR, 0o644, 0, 0)
	_, errMkdir := c.root.MkdirAt(c.ctx, "new", 0o755, 0, 0)
	_, errMknod := c.root.MknodAt(c.ctx, "new", linux.ModeNamedPipe|0o600, 0, 0, 0, 0)
	_, errSymlink := c.root.SymlinkAt(c.ctx, "new", "x", 0, 0)
	_, errLink := c.root.LinkAt(c.ctx, f.ID(), "new")
	_, _, errBind := c.root.BindAt(c.ctx, unix.SOCK_STREAM, "new", 0o600, 0, 0)
	_, _, errStat := f.SetStat(c.ctx, &linux.Statx{Mask: linux.STATX_MODE, Mode: 0o600})
	for what, err := range map[string]error{
		"write": errWrite, "open": errOpen, "truncate": errTrunc, "create": errCreate, "mkdir": errMkdir, "mknod": errMknod,
		"symlink": errSymlink, "link": errLink, "bind": errBind, "setstat": errStat,
		"allocate": o.Allocate(c.ctx, 0, 0, 10),
		"unlink":   c.root.UnlinkAt(c.ctx, "f", 0), "rename": c.root.RenameAt(c.ctx, "f", c.root.ID(), "g", 0),
		"exchange": c.root.RenameAt(c.ctx, "f", c.root.ID(), "f2", unix.RENAME_EXCHANGE),
		"setxattr": f.SetXattr(c.ctx, "user.a", "2", 0), "removexattr": f.RemoveXattr(c.ctx, "user.a"),
	} {
		if err != unix.EROFS {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	if v, err := f.GetXattr(c.ctx, "user.a", 10); err != nil || v != "1" {
		t.Errorf("attribute: %q, %v", v, err)
	}
}

func TestOneFileIsServed(t *testing.T) {
	dir := xattrDir(t)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := mount(t, path, Options{Owners: Recorded})
	if got := c.read(c.root); got != "x" {
		t.Errorf("read %q", got)
	}
	c.ok("chown", c.chown(c.root, 5, 5))
	c.is(c.stat(c.root), unix.S_IFREG|0o644, 5, 5)
	if _, err := c.root.WalkStat(c.ctx, []string{"x"}); err != unix.ENOTDIR {
		t.Errorf("walk: %v", err)
	}
	var fs lisafs.StatFS
	c.ok("statfs", c.root.StatFSTo(c.ctx, &fs))
}

func TestOneSocketIsServedAsItsDirectoryRecordsIt(t *testing.T) {
	dir := xattrDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	path := filepath.Join(dir, "s")
	var st unix.Stat_t
	if err := errors.Join(os.Chmod(path, 0o600), os.Chmod(dir, 0o700), unix.Lstat(path, &st)); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir)
	if err := sys.RecordName(int(d.Fd()), "s", &st, sys.Inode{Mode: unix.S_IFSOCK | 0o600, UID: 70, GID: 71}, sys.Self()); err != nil {
		t.Fatal(err)
	}
	before, err := sys.RecordedNames(int(d.Fd()), sys.Self())
	if err != nil {
		t.Fatal(err)
	}
	c := mount(t, path, Options{Owners: Recorded})
	c.is(c.stat(c.root), unix.S_IFSOCK|0o600, 70, 71)
	c.ok("chown", c.chown(c.root, 5, 5))
	c.is(c.stat(c.root), unix.S_IFSOCK|0o600, 5, 5)
	if now, err := sys.RecordedNames(int(d.Fd()), sys.Self()); err != nil || now.Of["s"] != before.Of["s"] {
		t.Errorf("the directory, which is not shown, says %+v now, %v", now, err)
	}
	fd, err := c.root.Connect(c.ctx, unix.SOCK_STREAM, lisafs.NoUID, lisafs.NoGID)
	c.ok("connect", err)
	_ = unix.Close(fd)
}
