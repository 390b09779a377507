package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/tree"
)

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// noSuchPath is docker's sentence for a path that a container does not have.
func noSuchPath(container, name string, err error) error {
	if isNotExist(err) || errdefs.IsNotFound(err) {
		return notFound("Could not find the file %s in container %s", name, container)
	}
	return err
}

// filer is what reads and writes the files of a container now, and the path there; nil for
// one that does not run and a path that is not on one of its volumes. The caller closes what it opens.
func (l *life) filer(ctx context.Context, name string) (sandbox.Filer, string, func() error, error) {
	nothing := func() error { return nil }
	l.mu.Lock()
	r, request := l.run, l.request
	l.mu.Unlock()
	for r != nil {
		f, ok := r.sb.(sandbox.Filer)
		if !ok {
			return nil, "", nothing, nil
		}
		if _, err := f.Stat(ctx, "/"); !errors.Is(err, os.ErrProcessDone) {
			return f, name, nothing, nil
		}
		// It has just ended: its files are there when that is accounted for.
		if err := r.awaitEnd(ctx); err != nil {
			return nil, "", nothing, err
		}
		l.mu.Lock()
		r, request = l.run, l.request
		l.mu.Unlock()
	}
	clean := path.Clean("/" + name)
	var best *Mount
	for i := range request.Mounts {
		m := &request.Mounts[i]
		at := path.Clean(m.Target)
		if m.Kind != MountTmpfs && (clean == at || strings.HasPrefix(clean, at+"/")) && (best == nil || len(at) > len(path.Clean(best.Target))) {
			best = m
		}
	}
	if best == nil {
		return nil, "", nothing, nil
	}
	dir, done := best.Source, nothing
	if best.Kind == MountVolume {
		d, hold, _, err := l.engine.Store.Volume(ctx, best.Source, false)
		if err != nil {
			return nil, "", nothing, err
		}
		dir, done = d, hold.Close
		v := attachedVolume{name: best.Source, dir: d, hold: hold, mount: *best}
		if m, err := v.oci(); err == nil && m.Type == "bind" {
			dir = m.Source
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		return nil, "", nothing, errors.Join(err, done())
	}
	// A slash or a dot at the end says that a directory is meant.
	rest := strings.TrimPrefix(clean, path.Clean(best.Target))
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		rest += "/"
	}
	return sandbox.NewFiles(root), "/" + rest, func() error { return errors.Join(root.Close(), done()) }, nil
}

// StatPath describes a path in a container, running or not. It does not follow a symbolic
// link at the end.
func (e *Engine) StatPath(ctx context.Context, nameOrID, name string) (_ sandbox.FileStat, err error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return sandbox.FileStat{}, err
	}
	f, at, done, err := l.filer(ctx, name)
	if err != nil {
		return sandbox.FileStat{}, err
	}
	if f != nil {
		s, err := f.Stat(ctx, at)
		if s.Name == "/" || at != name {
			s.Name = path.Base(path.Clean("/" + name))
		}
		return s, errors.Join(noSuchPath(nameOrID, name, err), done())
	}
	k, err := l.look(ctx)
	if err != nil {
		return sandbox.FileStat{}, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	_, entry, err := k.find(name)
	if err != nil {
		return sandbox.FileStat{}, noSuchPath(nameOrID, name, err)
	}
	return statOf(name, entry), nil
}

// find resolves a path, but for a symbolic link at the end.
func (k *look) find(name string) (string, *oci.Entry, error) {
	resolve := tree.ResolveParent
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		resolve = tree.Resolve
	}
	p, err := resolve(k.c.view, name)
	if err != nil {
		return "", nil, err
	}
	entry, err := k.c.view.Lstat(p)
	return p, entry, err
}

func statOf(name string, e *oci.Entry) sandbox.FileStat {
	s := sandbox.FileStat{Name: path.Base(path.Clean("/" + name)), Size: e.Size, Mode: modeOf(e.Mode), ModTime: e.ModTime}
	if e.Mode&unix.S_IFMT == unix.S_IFLNK {
		s.LinkTarget = e.Link
	}
	return s
}

// modeOf is a mode of stat(2) as Go has it.
func modeOf(mode uint32) fs.FileMode {
	h := tar.Header{Mode: int64(mode & 0o7777), Typeflag: typeflag(mode)}
	return h.FileInfo().Mode()
}

func typeflag(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return tar.TypeDir
	case unix.S_IFLNK:
		return tar.TypeSymlink
	case unix.S_IFCHR:
		return tar.TypeChar
	case unix.S_IFBLK:
		return tar.TypeBlock
	case unix.S_IFIFO:
		return tar.TypeFifo
	}
	return tar.TypeReg
}

// ReadArchive is a tar of a path in a container, as docker cp reads it.
func (e *Engine) ReadArchive(ctx context.Context, nameOrID, name string) (io.ReadCloser, sandbox.FileStat, error) {
	stat, err := e.StatPath(ctx, nameOrID, name)
	if err != nil {
		return nil, stat, err
	}
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, stat, err
	}
	as := path.Base(path.Clean("/" + name))
	if as == "/" || strings.HasSuffix(name, "/.") {
		as = "."
	}
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		write.CloseWithError(l.writeTar(ctx, name, as, write))
	}()
	l.tell("archive-path", nil)
	return &cancelReader{read, cancel}, stat, nil
}

// A cancelReader ends who writes when it is closed.
type cancelReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// Close ends the archive.
func (r *cancelReader) Close() error {
	r.cancel()
	return r.PipeReader.Close()
}

func (l *life) writeTar(ctx context.Context, name, as string, w io.Writer) (err error) {
	f, at, done, err := l.filer(ctx, name)
	if err != nil {
		return err
	}
	if f != nil {
		return errors.Join(f.ReadTar(ctx, at, as, w), done())
	}
	k, err := l.look(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	p, _, err := k.find(name)
	if err != nil {
		return err
	}
	t := &archiver{view: k.c.view, root: p, as: as, tw: tar.NewWriter(w)}
	err = tree.Walk(k.c.view, p, func(e *oci.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return t.add(e)
	})
	return errors.Join(err, t.tw.Close())
}

// An archiver writes what a view has below root as a tar whose entries begin with as.
type archiver struct {
	view     tree.FS
	root, as string
	tw       *tar.Writer
}

func (t *archiver) name(full string) string {
	root := strings.Trim(path.Clean("/"+t.root), "/")
	rel := strings.TrimPrefix(strings.TrimPrefix(strings.Trim(path.Clean("/"+full), "/"), root), "/")
	if rel == "" {
		return t.as
	}
	return t.as + "/" + rel
}

func (t *archiver) add(e *oci.Entry) error {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: t.name(e.Path), Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: e.ModTime, Typeflag: typeflag(e.Mode), Linkname: e.Link,
	}
	switch {
	case e.Hardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, t.name(e.Link)
	case h.Typeflag == tar.TypeDir:
		h.Name += "/"
	case h.Typeflag == tar.TypeReg:
		h.Size = e.Size
	case h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock:
		h.Devmajor, h.Devminor = int64(unix.Major(e.Rdev)), int64(unix.Minor(e.Rdev))
	}
	for name, value := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value)
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("archive %s: %w", h.Name, err)
	}
	if h.Size == 0 || h.Typeflag != tar.TypeReg {
		return nil
	}
	r, err := t.view.Open(e.Path)
	if err != nil {
		return err
	}
	_, err = io.Copy(t.tw, r)
	return errors.Join(err, r.Close())
}
