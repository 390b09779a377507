package gofer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"
)

// send writes one message as the socket has it: length, number, two bytes of
// nothing, payload.
func send(conn *os.File, mid uint16, payload []byte) error {
	head := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	head = binary.LittleEndian.AppendUint16(head, mid)
	_, err := conn.Write(append(append(head, 0, 0), payload...))
	return err
}

// answer reads one message and drops it.
func answer(conn *os.File) (payload []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size > 2<<20 {
		return nil, errors.New("the answer is too long")
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(conn, payload)
	return payload, err
}

// FuzzMessages sends whatever it likes: a number of a message, its length and
// its bytes, many times.
func FuzzMessages(f *testing.F) {
	message := func(mid lisafs.MID, payload ...byte) []byte {
		return append([]byte{byte(mid), byte(len(payload))}, payload...)
	}
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0} // the root's handle
	named := func(name string) []byte {
		return append(binary.LittleEndian.AppendUint16(append([]byte{}, one...), uint16(len(name))), name...)
	}
	f.Add(message(lisafs.FStat, one...))
	f.Add(append(message(lisafs.Walk, append(append([]byte{}, one...), 1, 0, 2, 0, '.', '.')...), message(lisafs.WalkStat, one...)...))
	f.Add(message(lisafs.UnlinkAt, append(named("f"), 0, 0, 0, 0)...))
	f.Add(append(message(lisafs.OpenAt, append(append([]byte{}, one...), 0, 0, 0, 0, 0, 0, 0, 0)...), message(lisafs.Getdents64, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80)...))
	f.Add(message(lisafs.FGetXattr, append(named("user.den.inode"), 0xff, 0xff, 0xff, 0xff)...))
	f.Add(message(lisafs.Mount))
	f.Add(message(lisafs.Channel))
	base, err := os.MkdirTemp("", "gofer")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(base) })
	canary := filepath.Join(base, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(base, "tree")
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600),
			os.Symlink("../canary", filepath.Join(dir, "out"))); err != nil {
			t.Fatal(err)
		}
		fd, stop := serve(t, dir, Options{Owners: Recorded, MaxFiles: 100})
		conn := os.NewFile(uintptr(fd), "client")
		defer stop()
		defer func() { _ = conn.Close() }()
		if err := send(conn, uint16(lisafs.Mount), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := answer(conn); err != nil {
			t.Fatal(err)
		}
		for n := 0; len(data) >= 2 && n < 50; n++ {
			mid, size := uint16(data[0]), min(int(data[1]), len(data)-2)
			if err := send(conn, mid, data[2:2+size]); err != nil {
				break
			}
			if payload, err := answer(conn); err != nil {
				break
			} else if bytes.Contains(payload, []byte("alive")) {
				t.Error("a file outside was read")
			}
			data = data[2+size:]
		}
		if b, err := os.ReadFile(canary); err != nil || string(b) != "alive" {
			t.Errorf("a file outside holds %q, %v", b, err)
		}
		if names, err := os.ReadDir(base); err != nil || len(names) != 2 {
			t.Errorf("outside there are now %v, %v", names, err)
		}
	})
}

func TestClaimedLengthEndsNothingButItsGofer(t *testing.T) {
	fd, cmd := child(t, xattrDir(t), Recorded)
	conn := os.NewFile(uintptr(fd), "client")
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte{0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := answer(conn); err == nil {
		t.Error("a message of 4 GB was answered")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the gofer ended well")
	}
}

func TestTooLongNamesAreRefused(t *testing.T) {
	dir := xattrDir(t)
	c := mount(t, dir, Options{Owners: Recorded})
	f := c.create(c.root, "f", "", 0o600, 0, 0)
	for _, long := range []string{strings.Repeat("n", 256), strings.Repeat("n", 60000)} {
		_, _, _, errCreate := c.root.OpenCreateAt(c.ctx, long, unix.O_RDWR, 0o600, 0, 0)
		_, errMkdir := c.root.MkdirAt(c.ctx, long, 0o755, 0, 0)
		_, errMknod := c.root.MknodAt(c.ctx, long, linux.ModeNamedPipe|0o600, 5, 5, 0, 0)
		_, errSymlink := c.root.SymlinkAt(c.ctx, long, "x", 5, 5)
		_, errLink := c.root.LinkAt(c.ctx, f.ID(), long)
		_, errWalkStat := c.root.WalkStat(c.ctx, []string{long})
		_, errWalk := c.root.Walk(c.ctx, long)
		for what, err := range map[string]error{
			"create": errCreate, "mkdir": errMkdir, "mknod": errMknod, "symlink": errSymlink, "link": errLink, "walkstat": errWalkStat, "walk": errWalk,
			"rename": c.root.RenameAt(c.ctx, "f", c.root.ID(), long, 0), "unlink": c.root.UnlinkAt(c.ctx, long, 0),
		} {
			if err != unix.ENAMETOOLONG {
				t.Errorf("%s of %d bytes: %v", what, len(long), err)
			}
		}
	}
	if _, _, err := c.root.BindAt(c.ctx, unix.SOCK_STREAM, "a\x00b", 0o600, 0, 0); err != unix.EINVAL {
		t.Errorf("bind to a name with a NUL: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/etc"} {
		if _, err := c.root.MkdirAt(c.ctx, name, 0o755, 0, 0); err != unix.EINVAL {
			t.Errorf("mkdir %q: %v", name, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestFilesThatAreHeldAreBounded(t *testing.T) {
	dir := xattrDir(t)
	tree, err := Open(openRoot(t, dir), Options{Owners: Recorded, MaxFiles: 20})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tree.Serve(context.Background(), os.NewFile(uintptr(fds[0]), "server")) }()
	c := connect(t, fds[1])
	f := c.create(c.root, "f", "", 0o600, 0, 0)
	var held []lisafs.ClientFD
	for range 100 {
		i, err := c.root.Walk(c.ctx, "f")
		if err != nil {
			if err != unix.ENFILE {
				t.Errorf("walk: %v", err)
			}
			break
		}
		held = append(held, c.c.NewFD(i.ControlFD))
	}
	if len(held) != 18 { // with the root and the first handle
		t.Errorf("%d handles", len(held))
	}
	_, _, errOpen := f.OpenAt(c.ctx, unix.O_RDONLY)
	_, errMkdir := c.root.MkdirAt(c.ctx, "d", 0o755, 0, 0)
	_, _, _, errCreate := c.root.OpenCreateAt(c.ctx, "g", unix.O_RDWR, 0o600, 0, 0)
	_, _, errBind := c.root.BindAt(c.ctx, unix.SOCK_STREAM, "s", 0o600, 0, 0)
	for what, err := range map[string]error{"open": errOpen, "mkdir": errMkdir, "create": errCreate, "bind": errBind} {
		if err != unix.ENFILE {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, h := range held {
		h.Close(c.ctx, true)
	}
	// Failures of every kind give back what they reserved.
	for range 3 {
		_, _, _, _ = c.root.OpenCreateAt(c.ctx, "f", unix.O_RDWR, 0o600, 0, 0)
		_, _ = c.root.MkdirAt(c.ctx, "f", 0o755, 0, 0)
		_, _ = c.root.MknodAt(c.ctx, "f", linux.ModeNamedPipe, 0, 0, 0, 0)
		_, _ = c.root.SymlinkAt(c.ctx, "f", "x", 0, 0)
		_, _ = c.root.LinkAt(c.ctx, f.ID(), "f")
		_, _, _ = c.root.BindAt(c.ctx, unix.SOCK_STREAM, "f", 0o600, 0, 0)
		_, _ = c.root.Walk(c.ctx, "none")
		_, _, _ = c.root.OpenAt(c.ctx, unix.O_RDWR)
	}
	c.create(c.root, "g", "", 0o600, 0, 0)
	if n := tree.files.Load(); n != 3 {
		t.Errorf("%d files are counted, want the root's and two handles", n)
	}
	c.c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := tree.files.Load(); n != 0 {
		t.Errorf("%d files are counted at the end", n)
	}
}

func TestNamesThatAreSwappedLeadNowhere(t *testing.T) {
	dir, outside := xattrDir(t), t.TempDir()
	secret := filepath.Join(outside, "secret")
	err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Symlink(outside, filepath.Join(dir, "l")))
	if err != nil {
		t.Fatal(err)
	}
	c := mount(t, dir, Options{Owners: Recorded})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		root := openDir(t, dir)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(int(root.Fd()), "d", int(root.Fd()), "l", unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 2000 {
		if _, inodes, err := c.root.WalkMultiple(c.ctx, []string{"d", "secret"}); err == nil && len(inodes) == 2 {
			t.Fatal("walked out")
		}
		if stats, err := c.root.WalkStat(c.ctx, []string{"d", "secret"}); err == nil && len(stats) == 2 {
			t.Fatal("looked out")
		}
	}
	close(stop)
	wg.Wait()
}

func TestReplacedFileIsNotMistaken(t *testing.T) {
	dir, outside := xattrDir(t), filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := mount(t, dir, Options{Owners: Recorded})
	f := c.create(c.root, "f", "x", 0o644, 0, 0)
	pipe, _ := c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o600, 0, 0, 0, 0))
	for _, name := range []string{"f", "pipe"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), os.Symlink(outside, path)); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []lisafs.ClientFD{f, pipe} {
		c.ok("chmod", c.chmod(h, 0o777))
		_ = c.chown(h, 5, 5)
		_ = c.set(h, linux.Statx{Mask: linux.STATX_MTIME, Mtime: linux.StatxTimestamp{Sec: 1}})
	}
	c.ok("truncate", c.set(f, linux.Statx{Mask: linux.STATX_SIZE}))
	if got := c.read(f); got != "" {
		t.Errorf("read %q", got)
	}
	fi, err := os.Stat(outside)
	if err != nil || fi.Mode() != 0o600 || fi.Size() != 7 || fi.ModTime().Unix() == 1 {
		t.Errorf("outside: %v, %v", fi, err)
	}
	_, st := c.walk("pipe")
	c.is(st, unix.S_IFLNK|0o777, 0, 0)
}
