package snapshottest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/snapshot"
	"den/internal/sys"
)

// debian is a small stack of three layers, the middle one of two trees.
func debian(t *testing.T) []snapshot.Tree {
	secret := File("etc/shadow", "secret")
	secret.Mode, secret.UID = unix.S_IFREG|0o600, 0
	suid := File("usr/bin/su", "#!")
	suid.Mode, suid.UID = unix.S_IFREG|0o4755, 0
	attr := File("usr/lib/a", "a")
	attr.Xattrs = map[string][]byte{"user.note": []byte("v"), sys.CapabilityAttr: []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	tmp := Dir("tmp")
	tmp.Mode = unix.S_IFDIR | 0o1777
	base := NewTree(t, Link("bin", "usr/bin"), Dir("etc"), File("etc/motd", "hello"), secret, tmp, Dir("usr"), Dir("usr/bin"),
		suid, Dir("usr/lib"), attr, File("usr/lib/b", "b"), Hard("usr/lib/b2", "usr/lib/b"), Dir("usr/share"), File("usr/share/doc", "doc"))
	lower := NewTree(t, Dir("etc"), Whiteout("etc/motd"), Dir("usr"), Dir("usr/lib"), File("usr/lib/c", "old"))
	delta := NewTree(t, Dir("usr"), Dir("usr/lib"), File("usr/lib/c", "c"), Dir("srv"), Dir("srv/deep"), Dir("srv/deep/er"), File("srv/deep/er/f", "1"))
	middle := &Tree{dirs: append(append([]string{}, delta.dirs...), lower.dirs...), diffID: delta.diffID}
	opaque := Dir("usr/share")
	opaque.Opaque = true
	top := NewTree(t, Dir("usr"), opaque, File("usr/share/new", "new"))
	return []snapshot.Tree{base, middle, top}
}

// linked is a file with a name in each of two directories.
func linked(t *testing.T) []snapshot.Tree {
	return []snapshot.Tree{NewTree(t, Dir("a"), File("a/x", "x"), Dir("b"), Hard("b/x", "a/x"))}
}

// in makes a path below root.
func in(root, path string) string { return filepath.Join(root, path) }

func touch(path, content string) error { return os.WriteFile(path, []byte(content), 0o644) }

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

var cases = []contract{
	{"nothing happens", debian, func(string) error { return nil }, []string{}},
	{"a file is added", debian, func(r string) error { return touch(in(r, "srv/new"), "x") }, []string{"srv", "srv/new"}},
	{"a file deep down changes", debian, func(r string) error { return touch(in(r, "srv/deep/er/f"), "2") },
		[]string{"srv", "srv/deep", "srv/deep/er", "srv/deep/er/f"}},
	{"a file changes and keeps its size and time", debian, func(r string) error {
		return first(touch(in(r, "srv/deep/er/f"), "2"), os.Chtimes(in(r, "srv/deep/er/f"), then, then))
	}, []string{"srv", "srv/deep", "srv/deep/er", "srv/deep/er/f"}},
	{"a file is removed", debian, func(r string) error { return os.Remove(in(r, "usr/share/new")) },
		[]string{"usr", "usr/share", "usr/share/new removed"}},
	{"a tree is removed", debian, func(r string) error { return os.RemoveAll(in(r, "srv")) }, []string{"srv removed"}},
	{"everything is removed", debian, func(r string) error {
		return first(os.RemoveAll(in(r, "usr")), os.RemoveAll(in(r, "srv")), os.RemoveAll(in(r, "etc")), os.Remove(in(r, "bin")), os.Remove(in(r, "tmp")))
	}, []string{"bin removed", "etc removed", "srv removed", "tmp removed", "usr removed"}},
	{"a file that is added and removed leaves nothing but times", debian, func(r string) error {
		return first(touch(in(r, "srv/x"), ""), os.Remove(in(r, "srv/x")))
	}, []string{"srv"}},
	{"a mode changes", debian, func(r string) error { return os.Chmod(in(r, "etc/shadow"), 0o640) }, []string{"etc", "etc/shadow"}},
	{"an owner changes", debian, func(r string) error { return os.Lchown(in(r, "bin"), 33, 33) }, []string{"bin"}},
	{"setuid and attributes", debian, func(r string) error {
		return first(touch(in(r, "usr/bin/sudo"), "x"), os.Chown(in(r, "usr/bin/sudo"), 0, 42), os.Chmod(in(r, "usr/bin/sudo"), 0o755|os.ModeSetuid|os.ModeSetgid),
			unix.Setxattr(in(r, "usr/bin/sudo"), "user.x", []byte("y"), 0), unix.Setxattr(in(r, "usr/lib"), "user.d", []byte("e"), 0),
			unix.Removexattr(in(r, "usr/lib/a"), "user.note"))
	}, []string{"usr", "usr/bin", "usr/bin/sudo", "usr/lib", "usr/lib/a"}},
	{"a file becomes a directory", debian, func(r string) error {
		return first(os.Remove(in(r, "etc/shadow")), os.Mkdir(in(r, "etc/shadow"), 0o700), touch(in(r, "etc/shadow/x"), "x"))
	}, []string{"etc", "etc/shadow opaque", "etc/shadow/x"}},
	{"a directory becomes a file", debian, func(r string) error {
		return first(os.RemoveAll(in(r, "usr/lib")), touch(in(r, "usr/lib"), "x"))
	}, []string{"usr", "usr/lib"}},
	{"a directory becomes a link", debian, func(r string) error {
		return first(os.RemoveAll(in(r, "srv")), os.Symlink("tmp", in(r, "srv")))
	}, []string{"srv"}},
	{"a directory is made anew", debian, func(r string) error {
		return first(os.RemoveAll(in(r, "srv")), os.Mkdir(in(r, "srv"), 0o755), touch(in(r, "srv/own"), "x"))
	}, nil},
	{"a file is renamed", debian, func(r string) error { return os.Rename(in(r, "usr/lib/c"), in(r, "usr/lib/d")) },
		[]string{"usr", "usr/lib", "usr/lib/c removed", "usr/lib/d"}},
	{"a new directory is renamed over an empty one", debian, func(r string) error {
		return first(os.Mkdir(in(r, "a"), 0o755), touch(in(r, "a/x"), "x"), os.Mkdir(in(r, "b"), 0o755), unix.Rename(in(r, "a"), in(r, "b")))
	}, nil},
	{"a directory of the stack is renamed", debian, func(r string) error { return os.Rename(in(r, "usr/lib"), in(r, "lib")) }, nil},
	{"a directory with one of a file's names is renamed", linked, func(r string) error { return os.Rename(in(r, "a"), in(r, "c")) },
		[]string{"a removed", "b", "b/x", "c", "c/x = b/x"}},
	{"a file with two names loses one", linked, func(r string) error { return os.Remove(in(r, "a/x")) }, nil},
	{"two files trade places", debian, func(r string) error {
		return first(os.Rename(in(r, "usr/lib/a"), in(r, "x")), os.Rename(in(r, "usr/lib/b"), in(r, "usr/lib/a")), os.Rename(in(r, "x"), in(r, "usr/lib/b")))
	}, nil},
	{"hard links are made", debian, func(r string) error {
		return first(touch(in(r, "tmp/one"), "1"), os.Link(in(r, "tmp/one"), in(r, "srv/two")))
	}, []string{"srv", "srv/two", "tmp", "tmp/one = srv/two"}},
	{"a hard link to an old file is made", debian, func(r string) error {
		return os.Link(in(r, "etc/shadow"), in(r, "etc/shadow-"))
	}, []string{"etc", "etc/shadow", "etc/shadow- = etc/shadow"}},
	{"nodes of all kinds are made", debian, func(r string) error {
		return first(unix.Mkfifo(in(r, "tmp/pipe"), 0o600), unix.Mknod(in(r, "tmp/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
			unix.Mknod(in(r, "tmp/sda"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 0))), os.Symlink("/nowhere", in(r, "tmp/link")), os.Mkdir(in(r, "tmp/dir"), 0))
	}, []string{"tmp", "tmp/dir", "tmp/link", "tmp/null", "tmp/pipe", "tmp/sda"}},
	{"times are set", debian, func(r string) error {
		old := time.Unix(-1000, 0)
		return first(os.Chtimes(in(r, "usr/lib/a"), old, old), os.Chtimes(in(r, "usr/share"), old, old))
	}, []string{"usr", "usr/lib", "usr/lib/a", "usr/share"}},
}

func emptyStack(t *testing.T, d snapshot.Driver) {
	c := contract{stack: func(*testing.T) []snapshot.Tree { return nil },
		change: func(r string) error { return touch(in(r, "a"), "x") }, want: []string{"a"}}
	c.run(t, d)
	a, err := d.View(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := mount(t, a.Root)
	if names, err := os.ReadDir(root); err != nil || len(names) != 0 {
		t.Errorf("the view holds %v, %v", names, err)
	}
}

func viewOfStack(t *testing.T, d snapshot.Driver) {
	stack := debian(t)
	for n := 1; n <= len(stack); n++ {
		a, err := d.View(context.Background(), stack[:n])
		if err != nil {
			t.Fatal(err)
		}
		if a.Upper() != "" {
			t.Error("a view has an upper directory")
		}
		if _, err := snapshot.Commit(context.Background(), a); err == nil {
			t.Error("a view can be committed")
		}
		ro := false
		for _, o := range a.Root.Options {
			ro = ro || o == "ro"
		}
		if !ro {
			t.Errorf("options are %v", a.Root.Options)
		}
		root, unmount := mount(t, a.Root)
		got, want := listing(t, root), merged(t, nil, stack[:n])
		if len(got) != len(want) {
			t.Errorf("%d layers: the view lists %d files, want %d", n, len(got), len(want))
		}
		unmount()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	}
}

func sameLayerTwice(t *testing.T, d snapshot.Driver) {
	c := contract{
		stack: func(t *testing.T) []snapshot.Tree {
			stack := debian(t)
			return append(stack, stack[0], stack[1], stack[0])
		},
		change: func(r string) error { return touch(in(r, "etc/motd"), "again") },
		want:   []string{"etc", "etc/motd"},
	}
	c.run(t, d)
}

func opaqueRoot(t *testing.T, d snapshot.Driver) {
	root := layer.File{}
	root.Path, root.Mode, root.Opaque = ".", unix.S_IFDIR|0o755, true
	c := contract{
		stack:  func(t *testing.T) []snapshot.Tree { return append(debian(t), NewTree(t, root, File("only", "x"))) },
		change: func(r string) error { return os.Remove(in(r, "only")) },
		want:   []string{"only removed"},
	}
	c.run(t, d)
}

func rootKeepsItsMode(t *testing.T, d snapshot.Driver) {
	root := layer.File{}
	root.Path, root.Mode, root.UID, root.GID = ".", unix.S_IFDIR|0o555, 5, 6
	stack := []snapshot.Tree{NewTree(t, root, File("f", "x"))}
	a, err := d.Prepare(context.Background(), stack, NewDraft(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	var st unix.Stat_t
	dir, _ := mount(t, a.Root)
	if err := unix.Stat(dir, &st); err != nil || st.Mode&0o7777 != 0o555 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("the root is %#o %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
}
