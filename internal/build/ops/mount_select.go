package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/tree"
)

// A selection is a part of a stack of layers: a directory, as the stack of what
// each layer has of it, or one file. Layers never change, so a path that was
// resolved once stays what it is.
type selection struct {
	dirs []string // top first
	file string   // instead of dirs
	hold []*os.File
	id   oci.Digest
}

var _ snapshot.Tree = (*selection)(nil)

// Dirs implements snapshot.Tree.
func (s *selection) Dirs() []string { return s.dirs }

// Hold implements snapshot.Tree.
func (s *selection) Hold() []*os.File { return s.hold }

// DiffID implements snapshot.Tree. It identifies the selection in this process.
func (s *selection) DiffID() oci.Digest { return s.id }

// Close implements snapshot.Tree; the Ref keeps the leases.
func (s *selection) Close() error { return nil }

// selectPath finds a path of r, following its symbolic links inside r.
func selectPath(ctx context.Context, r *Ref, selector string) (*selection, error) {
	if r == nil {
		return nil, fmt.Errorf("%q: %w: %w", selector, os.ErrNotExist, errdefs.ErrNotFound)
	}
	trees, err := r.Trees(ctx)
	if err != nil {
		return nil, err
	}
	fs, done, err := r.FS(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	p, err := resolveIn(fs, selector)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", selector, err)
	}
	s := &selection{id: digest.FromString(string(r.ID()) + "\x00" + p)}
	for _, t := range trees {
		s.hold = append(s.hold, t.Hold()...)
	}
	if err := s.gather(dirsOf(trees), p); err != nil {
		return nil, fmt.Errorf("%q: %w", selector, err)
	}
	return s, nil
}

// resolveIn follows all symbolic links of a path, which has to exist.
func resolveIn(fs tree.FS, p string) (string, error) {
	p, err := tree.Resolve(fs, p)
	if err != nil {
		return "", err
	}
	_, err = fs.Lstat(p)
	return path.Join("/", p), err
}

// gather collects what each directory, top first, shows of p: the rules by
// which overlayfs merges a path (Documentation/filesystems/overlayfs.rst).
func (s *selection) gather(dirs []string, p string) error {
	for _, dir := range dirs {
		found, below, err := lookIn(dir, p)
		if err != nil {
			return err
		}
		switch {
		case found == nil:
		case found.IsDir():
			s.dirs = append(s.dirs, filepath.Join(dir, p))
		case len(s.dirs) == 0:
			s.file = filepath.Join(dir, p)
			return nil
		default:
			return nil // hidden by the directories above it
		}
		if !below {
			break
		}
	}
	if len(s.dirs) == 0 {
		return os.ErrNotExist
	}
	return nil
}

// lookIn looks for p in one layer's directory; nil is not there. below says
// whether lower layers can show through.
func lookIn(dir, p string) (found fs.FileInfo, below bool, err error) {
	below = true
	at := dir
	names := strings.Split(strings.Trim(p, "/"), "/")
	for i, name := range names {
		at = filepath.Join(at, name)
		// Each directory above was looked at: no link is followed on the way.
		st, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, below, nil
		}
		if err != nil {
			return nil, false, err
		}
		if isWhiteout(st) || !st.IsDir() && i < len(names)-1 {
			return nil, false, nil
		}
		if st.IsDir() && isOpaque(at) {
			below = false
		}
		found = st
	}
	return found, below && found.IsDir(), nil
}

func isWhiteout(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && st.Mode()&fs.ModeCharDevice != 0 && sys.Rdev == 0
}

func isOpaque(dir string) bool {
	var v [2]byte
	n, err := unix.Lgetxattr(dir, "user.overlay.opaque", v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// mountSelected mounts a part of r: read-only, or with a draft on top that is
// thrown away.
func (s *step) mountSelected(ctx context.Context, r *Ref, selector string, readonly bool) (oci.Mount, error) {
	if s.env.Store.ImageForm() {
		return s.mountPart(ctx, r, selector, readonly)
	}
	sel, err := selectPath(ctx, r, selector)
	if err != nil {
		return oci.Mount{}, err
	}
	if sel.file != "" && readonly {
		return oci.Mount{Type: "bind", Source: sel.file, Options: []string{"bind", "ro"}, Hold: sel.hold}, nil
	}
	if readonly {
		return s.view(ctx, []snapshot.Tree{sel})
	}
	d, err := s.env.Store.NewDraft(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(d.Close)
	if sel.file != "" {
		name := filepath.Join(d.FS(), "file")
		return oci.Mount{Type: "bind", Source: name, Options: []string{"bind"}}, copyFile(sel.file, name)
	}
	a, err := s.env.Driver.Prepare(ctx, []snapshot.Tree{sel}, d)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(a.Close)
	return a.Root, nil
}

// mountPart is mountSelected where no layer is a directory: the part is made as
// a tree of its own, or as a file.
func (s *step) mountPart(ctx context.Context, r *Ref, selector string, readonly bool) (oci.Mount, error) {
	if r == nil {
		return oci.Mount{}, fmt.Errorf("%q: %w: %w", selector, os.ErrNotExist, errdefs.ErrNotFound)
	}
	view, done, err := r.FS(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	defer done()
	p, err := resolveIn(view, selector)
	if err != nil {
		return oci.Mount{}, fmt.Errorf("%q: %w", selector, err)
	}
	found, err := view.Lstat(p)
	if err != nil {
		return oci.Mount{}, fmt.Errorf("%q: %w", selector, err)
	}
	d, err := s.env.Store.NewDraft(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(d.Close)
	if found.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fileOf(ctx, view, p, d.Dir(), s.env.scratchOptions(), readonly)
	}
	if err := layer.Create(ctx, d.FS(), snapshot.Files(view, p), s.env.buildOptions()); err != nil {
		return oci.Mount{}, err
	}
	part := &selection{dirs: []string{d.FS()}, id: digest.FromString(string(r.ID()) + "\x00" + p)}
	if readonly {
		return s.view(ctx, []snapshot.Tree{part})
	}
	written, err := s.env.Store.NewDraft(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(written.Close)
	a, err := s.env.Driver.Prepare(ctx, []snapshot.Tree{part}, written)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(a.Close)
	return a.Root, nil
}

// fileOf makes the one file p of a view in dir, and describes its mount.
func fileOf(ctx context.Context, view tree.FS, p, dir string, o layer.UnpackOptions, readonly bool) (oci.Mount, error) {
	const name = "file"
	mnt := oci.Mount{Type: "bind", Source: filepath.Join(dir, name), Options: []string{"bind"}}
	if readonly {
		mnt.Options = append(mnt.Options, "ro")
	}
	return mnt, layer.Create(ctx, dir, func(yield func(layer.File, error) bool) {
		for f, err := range snapshot.Files(view, p) {
			f.Path = name
			if !yield(f, err) {
				return
			}
		}
	}, o)
}

// copyFile copies a layer's file with its owner and permissions.
func copyFile(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file: %w", filepath.Base(from), errdefs.ErrInvalidArgument)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chown(int(sys.Uid), int(sys.Gid))
	}
	if err == nil {
		err = unix.Fchmod(int(out.Fd()), sys.Mode&0o7777)
	}
	return errors.Join(err, out.Close())
}

// dirsOf are the directories of trees, which are bottom first, top first.
func dirsOf(trees []*store.Layer) []string {
	var dirs []string
	for i := len(trees) - 1; i >= 0; i-- {
		dirs = append(dirs, trees[i].Dirs()...)
	}
	return dirs
}
