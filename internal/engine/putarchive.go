package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/tree"
)

// WriteArchive unpacks a tar, compressed or not, into a directory of a container.
func (e *Engine) WriteArchive(ctx context.Context, nameOrID, name string, r io.Reader, o sandbox.WriteTarOptions) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return invalid("%v", err)
	}
	defer plain.Close()
	f, at, done, err := l.filer(ctx, name)
	if err != nil {
		return err
	}
	if f != nil {
		err = errors.Join(noSuchPath(nameOrID, name, f.WriteTar(ctx, at, plain, o)), done())
	} else {
		err = l.putTree(ctx, nameOrID, name, plain, o)
	}
	if err != nil {
		return err
	}
	l.tell("extract-to-dir", nil)
	return nil
}

// putTree makes of a tar one more tree of a container that does not run, on top of the
// others. nameOrID is what the client calls the container.
func (l *life) putTree(ctx context.Context, nameOrID, name string, r io.Reader, o sandbox.WriteTarOptions) (err error) {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	if _, err := l.running(); err == nil {
		return unsupported("copy into container %s: on this rung that works only while it does not run", l.id[:12])
	}
	if l.snapshot().State == stateRestarting {
		return conflict("container %s is restarting", l.id)
	}
	if l.request.ReadOnly {
		return &sentence{"container rootfs is marked read-only", errForbidden}
	}
	if err := l.flattenMany(ctx); err != nil {
		return err
	}
	k, err := l.look(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	root, err := tree.Resolve(k.c.view, name)
	var entry *oci.Entry
	if err == nil {
		entry, err = k.c.view.Lstat(root)
	}
	if err != nil {
		return noSuchPath(nameOrID, name, err)
	}
	if entry.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalid("extraction point is not a directory")
	}
	upper := k.c.freeUpper()
	at := filepath.Join(k.c.dir.Path(), upper)
	options := l.engine.treeOptions()
	options.Archive = true
	if !options.Image {
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
	}
	read, write := io.Pipe()
	go func() {
		p := &placing{view: k.c.view, root: strings.Trim(root, "/"), o: o, w: tar.NewWriter(write), made: map[string]bool{}}
		write.CloseWithError(p.run(tar.NewReader(r)))
	}()
	_, err = layer.Unpack(ctx, read, at, options)
	read.CloseWithError(err)
	if err != nil {
		return errors.Join(fmt.Errorf("copy into container %s: %w", l.id[:12], err), removeUpper(at))
	}
	return l.update(func(rec *record) { rec.Uppers = append(slices.Clone(rec.Uppers), upper) })
}

// flattenMany makes one tree of too many. The caller holds op.
func (l *life) flattenMany(ctx context.Context) error {
	rec := l.snapshot()
	if len(rec.Uppers) < maxUppers {
		return nil
	}
	dir, err := l.locked(ctx)
	if err != nil {
		return err
	}
	c := &container{engine: l.engine, dir: dir, record: rec}
	err = c.flatten(ctx)
	l.mu.Lock()
	l.record.Uppers = c.record.Uppers
	l.mu.Unlock()
	return errors.Join(err, dir.Close())
}

// A placing writes a user's tar anew as the tree of an overlay: each entry where the links
// of the container lead, with the directories above as they are.
type placing struct {
	view tree.FS
	root string
	o    sandbox.WriteTarOptions
	w    *tar.Writer
	made map[string]bool // what is in the new tree
}

func (p *placing) run(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return p.w.Close()
		}
		if err != nil {
			return invalid("%v", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := p.add(h, r); err != nil {
			return err
		}
	}
}

func (p *placing) add(h *tar.Header, r io.Reader) error {
	if c := path.Clean(h.Name); c == ".." || strings.HasPrefix(c, "../") {
		return invalid("%.200q: the name leads out of the directory", h.Name)
	}
	rel := strings.Trim(path.Clean("/"+h.Name), "/")
	if rel == "" { // the directory itself stays as it is
		return nil
	}
	full, err := p.place(path.Join(p.root, rel))
	if err != nil {
		return err
	}
	if err := p.keepsKind(full, h); err != nil {
		return err
	}
	out := *h
	out.Name = full
	out.Format = tar.FormatPAX
	if h.Typeflag == tar.TypeDir {
		out.Name += "/"
	}
	if h.Typeflag == tar.TypeLink {
		if out.Linkname, err = p.place(path.Join(p.root, path.Clean("/"+h.Linkname))); err != nil {
			return err
		}
	}
	if !p.o.CopyOwners {
		out.Uid, out.Gid = int(p.o.UID), int(p.o.GID)
	}
	out.Uname, out.Gname = "", ""
	p.made[full] = true
	if err := p.w.WriteHeader(&out); err != nil {
		return err
	}
	_, err = io.Copy(p.w, r)
	return err
}

// place is where a path leads in the container, with all directories above it made.
func (p *placing) place(full string) (string, error) {
	dir, base := path.Split(full)
	dir = strings.Trim(dir, "/")
	if !p.made[dir] {
		if to, err := tree.Resolve(p.view, "/"+dir); err == nil {
			dir = strings.Trim(to, "/")
		}
	}
	if dir == "." {
		dir = ""
	}
	above := ""
	for _, part := range strings.Split(dir, "/") {
		if part == "" {
			continue
		}
		above = path.Join(above, part)
		if p.made[above] {
			continue
		}
		p.made[above] = true
		entry, err := p.view.Lstat(above)
		if err != nil || entry.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue // the tar makes it, or nobody: then it is made as archives have it
		}
		t := &archiver{view: p.view, root: above, as: above, tw: p.w}
		if err := t.add(entry); err != nil {
			return "", err
		}
	}
	return path.Join(dir, base), nil
}

// keepsKind refuses to put a directory where something else is, and the reverse.
func (p *placing) keepsKind(full string, h *tar.Header) error {
	if !p.o.KeepKinds {
		return nil
	}
	entry, err := p.view.Lstat(full)
	if err != nil {
		return nil //nolint:nilerr // there is nothing
	}
	is := entry.Mode&unix.S_IFMT == unix.S_IFDIR
	switch will := h.Typeflag == tar.TypeDir; {
	case is && !will:
		return invalid("cannot overwrite directory %q with non-directory %q", "/"+full, "/"+h.Name)
	case !is && will:
		return invalid("cannot overwrite non-directory %q with directory %q", "/"+full, "/"+h.Name)
	}
	return nil
}
