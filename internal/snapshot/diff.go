package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sys"
	"den/internal/tree"
)

// A baseline remembers every file of a fresh copy, in canonical order. The
// kernel moves a file's ctime forward at each change, of its names too, and no
// process can set it: path, inode number and ctime together say that a file is
// untouched. This needs the clock to have moved on since the copy was made.
type baseline struct {
	nodes []node
}

// node is what the comparison needs to know about a file.
type node struct {
	path  string
	dev   uint64
	ino   uint64
	ctime unix.Timespec
	isDir bool
	links uint64
}

// newBaseline scans root and waits until the file system's clock, seen through
// the file probe, is past the last change.
func newBaseline(ctx context.Context, root, probe string) (*baseline, error) {
	nodes, err := scan(ctx, root)
	if err != nil {
		return nil, err
	}
	var last unix.Timespec
	for _, n := range nodes {
		if after(n.ctime, last) {
			last = n.ctime
		}
	}
	if err := waitPast(ctx, probe, last); err != nil {
		return nil, err
	}
	return &baseline{nodes: nodes}, nil
}

func after(a, b unix.Timespec) bool {
	return a.Sec > b.Sec || (a.Sec == b.Sec && a.Nsec > b.Nsec)
}

// waitPast returns when a new change would get a later ctime than last: a few
// milliseconds on Linux file systems, whose clock is the kernel's tick.
func waitPast(ctx context.Context, probe string, last unix.Timespec) error {
	f, err := os.Create(probe)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; {
		var st unix.Stat_t
		if err := f.Chmod(0o600); err != nil {
			return err
		}
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return &os.PathError{Op: "fstat", Path: probe, Err: err}
		}
		if after(st.Ctim, last) {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the clock of the store's file system stands still or lies in the past")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// scan lists root in canonical order, without the root itself.
func scan(ctx context.Context, root string) ([]node, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var nodes []node
	err = scanDir(ctx, fd, "", &nodes)
	return nodes, err
}

func scanDir(ctx context.Context, dirfd int, dir string, nodes *[]node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := sys.ReadNames(dirfd)
	if err != nil {
		return &os.PathError{Op: "getdents", Path: dir, Err: err}
	}
	slices.Sort(names)
	for _, name := range names {
		path := strings.TrimPrefix(dir+"/"+name, "/")
		if len(path) > unix.PathMax {
			return fmt.Errorf("path %.40q... is longer than %d bytes", path, unix.PathMax)
		}
		var st unix.Stat_t
		if err := sys.LstatAt(dirfd, name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		*nodes = append(*nodes, node{path, st.Dev, st.Ino, st.Ctim, isDir, uint64(st.Nlink)})
		if !isDir {
			continue
		}
		fd, err := sys.OpenDirAt(dirfd, name)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		err = scanDir(ctx, fd, path, nodes)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// diff is a difference between two trees.
type diff struct {
	changed map[string]bool // added, changed, or on the way to something that is
	opaque  map[string]bool // directories in the place of something else
	removed []string        // in canonical order

	old, new tree.FS
}

// compare finds what happened to root, a copy of lower, since the baseline.
func (b *baseline) compare(ctx context.Context, root string, lower []string) (_ *diff, err error) {
	all, err := scan(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("scan: %w", err)
	}
	d := &diff{changed: map[string]bool{}, opaque: map[string]bool{}}
	if d.old, err = tree.Stack(lower); err != nil {
		return nil, err
	}
	if d.new, err = tree.Dir(root); err != nil {
		return nil, errors.Join(err, d.old.Close())
	}
	defer func() { err = errors.Join(err, d.old.Close(), d.new.Close()) }()
	now := all
	gone := "" // the last removed path: what was below it needs no removal
	for was := b.nodes; len(was) > 0 || len(now) > 0; {
		order := 0
		switch {
		case len(was) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = layer.ComparePaths(was[0].path, now[0].path)
		}
		switch {
		case order > 0:
			d.add(now[0].path)
			now = now[1:]
			continue
		case order < 0:
			if gone == "" || !strings.HasPrefix(was[0].path, gone+"/") {
				gone = was[0].path
				d.removed = append(d.removed, gone)
				d.parents(gone)
			}
		default:
			if err := d.both(was[0], now[0]); err != nil {
				return nil, err
			}
			if was[0].isDir && !now[0].isDir {
				gone = was[0].path // hidden by what took its place
			}
			now = now[1:]
		}
		was = was[1:]
	}
	d.wholeFiles(all)
	return d, nil
}

func (d *diff) both(was, now node) error {
	if was.ino == now.ino && was.dev == now.dev && was.ctime == now.ctime {
		return nil
	}
	if was.isDir == now.isDir && (now.isDir || now.links == 1) {
		same, err := d.same(now.path)
		if same || err != nil {
			return err
		}
	}
	d.add(now.path)
	if now.isDir && !was.isDir {
		d.opaque[now.path] = true
	}
	return nil
}

// same reports whether a layer would say nothing else of path than the stack below: it
// was touched and is as it was, a mount point for example. Layers have whole seconds.
func (d *diff) same(path string) (bool, error) {
	old, err := d.old.Lstat(path)
	if err != nil {
		return false, err
	}
	now, err := d.new.Lstat(path)
	if err != nil {
		return false, err
	}
	if old.Mode != now.Mode || old.UID != now.UID || old.GID != now.GID || old.Rdev != now.Rdev || old.Link != now.Link ||
		old.ModTime.Unix() != now.ModTime.Unix() || !maps.EqualFunc(old.Xattrs, now.Xattrs, bytes.Equal) {
		return false, nil
	}
	if old.Mode&unix.S_IFMT != unix.S_IFREG {
		return true, nil
	}
	if old.Size != now.Size {
		return false, nil
	}
	return d.sameContent(path)
}

func (d *diff) sameContent(path string) (_ bool, err error) {
	a, err := d.old.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := d.new.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	x, y := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		for _, e := range []error{errA, errB} {
			if e != nil && !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) {
				return false, e
			}
		}
		if errA != nil || errB != nil {
			return errA != nil && errB != nil, nil
		}
	}
}

func (d *diff) add(path string) {
	d.changed[path] = true
	d.parents(path)
}

// parents adds the directories that lead to path, which every layer repeats.
func (d *diff) parents(path string) {
	for {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return
		}
		path = path[:i]
		if d.changed[path] {
			return
		}
		d.changed[path] = true
	}
}

// wholeFiles adds the other names of each file of which one name changed, as
// when a directory that holds one was renamed: one layer has to hold them all,
// or they would become different files.
func (d *diff) wholeFiles(now []node) {
	type inode struct{ dev, ino uint64 }
	touched := map[inode]bool{}
	for _, n := range now {
		if !n.isDir && n.links > 1 && d.changed[n.path] {
			touched[inode{n.dev, n.ino}] = true
		}
	}
	for _, n := range now {
		if !n.isDir && touched[inode{n.dev, n.ino}] {
			d.add(n.path)
		}
	}
}

// files yields the difference in overlay form.
func (d *diff) files(root string) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		removed := d.removed
		for f, err := range layer.WalkPlain(root) {
			if err != nil {
				yield(f, err)
				return
			}
			for len(removed) > 0 && layer.ComparePaths(removed[0], f.Path) < 0 {
				if !yield(whiteout(removed[0]), nil) {
					return
				}
				removed = removed[1:]
			}
			if f.Path != "." && !d.changed[f.Path] {
				continue
			}
			f.Opaque = d.opaque[f.Path]
			if !yield(f, nil) {
				return
			}
		}
		for _, path := range removed {
			if !yield(whiteout(path), nil) {
				return
			}
		}
	}
}

func whiteout(path string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Whiteout: true}}
}
