package sentry

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/vfs"

	"den/internal/sandbox"
)

// unpack is Filer.WriteTar. What is in the way of an entry is removed first, so that nothing is
// ever written into a file, pipe or device that was there.
func (f *files) unpack(name string, r io.Reader, o sandbox.WriteTarOptions) error {
	dir, err := f.dir(name)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	dir.DecRef(f.ctx)
	u := &unpacker{files: f, dir: name, o: o, buf: make([]byte, 256<<10)}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			u.lateTimes()
			return nil
		}
		if err != nil {
			return invalid(fmt.Errorf("unpack into %s: read tar: %w", name, err))
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("unpack into %s: %.200s: %w", name, h.Name, err)
		}
	}
}

// invalid is an error of what the caller gave.
func invalid(err error) error { return &classError{err, errdefs.ErrInvalidArgument} }

// An unpacker unpacks one tar.
type unpacker struct {
	*files
	dir  string
	o    sandbox.WriteTarOptions
	buf  []byte
	late []lateTime
}

// A lateTime is a directory's time, which what is made in it would change.
type lateTime struct {
	name string
	time time.Time
}

// maxLateTimes bounds how many directories get their times back.
const maxLateTimes = 1 << 16

// dir finds a directory, following links.
func (f *files) dir(name string) (vfs.VirtualDentry, error) {
	d, err := f.find(follow(f.root, name))
	if err != nil {
		return d, err
	}
	st, err := f.stat(f.in(d, ""))
	if err == nil && st.Mode&linux.S_IFMT != linux.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		d.DecRef(f.ctx)
	}
	return d, err
}

// inDir is an entry's name as a path of the root; names may not lead out of the directory.
func (u *unpacker) inDir(name string) (string, error) {
	name = path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == ".." || strings.HasPrefix(name, "../"):
		return "", invalid(errors.New("the name leads out of the directory"))
	case strings.Count(name, "/") > maxDepth:
		return "", invalid(fmt.Errorf("more than %d directories deep", maxDepth))
	}
	return path.Join("/", u.dir, name), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	default:
		return invalid(fmt.Errorf("entry of type %q", h.Typeflag))
	}
	name, err := u.inDir(h.Name)
	if err != nil {
		return err
	}
	if path.Clean("/"+h.Name) == "/" {
		if h.Typeflag == tar.TypeDir {
			return nil // the directory itself stays as it is
		}
		return invalid(errors.New("the name is the directory's own"))
	}
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.DecRef(u.ctx)
	p := u.in(parent, path.Base(name))
	keep, err := u.clear(parent, p, path.Base(name), h)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(p, h, content)
	case tar.TypeLink:
		return u.link(p, h)
	case tar.TypeDir:
		if len(u.late) < maxLateTimes {
			u.late = append(u.late, lateTime{name, h.ModTime})
		}
	}
	return u.special(p, h, keep)
}

// parent finds a directory and makes what is missing of it.
func (u *unpacker) parent(name string) (vfs.VirtualDentry, error) {
	d, err := u.files.dir(name)
	if !errors.Is(err, unix.ENOENT) || name == "/" {
		return d, err
	}
	above, err := u.parent(path.Dir(name))
	if err != nil {
		return above, err
	}
	defer above.DecRef(u.ctx)
	err = asNil(u.b.k.VFS().MkdirAt(u.ctx, u.b.root, u.in(above, path.Base(name)), &vfs.MkdirOptions{Mode: 0o755}))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return vfs.VirtualDentry{}, err
	}
	if d, err = u.files.dir(name); err != nil {
		return d, err
	}
	o, err := u.owner(0, 0)
	if err == nil {
		err = u.setStat(u.in(d, ""), o)
	}
	if err != nil {
		d.DecRef(u.ctx)
	}
	return d, err
}

// clear removes what is in the way of an entry; keep says that it is a directory that stays.
func (u *unpacker) clear(parent vfs.VirtualDentry, p *vfs.PathOperation, base string, h *tar.Header) (keep bool, err error) {
	st, err := u.stat(p)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	isDir := st.Mode&linux.S_IFMT == linux.S_IFDIR
	if u.o.KeepKinds && isDir != (h.Typeflag == tar.TypeDir) {
		if isDir { // docker's words
			return false, invalid(fmt.Errorf("cannot overwrite directory %q with non-directory %q", base, u.dir))
		}
		return false, invalid(fmt.Errorf("cannot overwrite non-directory %q with directory %q", base, u.dir))
	}
	if isDir && h.Typeflag == tar.TypeDir {
		return true, nil
	}
	return false, u.remove(parent, base, 0)
}

// remove removes a file, or a directory with all that is in it.
func (u *unpacker) remove(parent vfs.VirtualDentry, base string, depth int) error {
	v := u.b.k.VFS()
	p := u.in(parent, base)
	err := asNil(v.UnlinkAt(u.ctx, u.b.root, p))
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%.200s: more than %d directories deep", base, maxDepth)
	}
	d, err := u.find(p)
	if err != nil {
		return err
	}
	defer d.DecRef(u.ctx)
	names, err := u.names(d)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := u.remove(d, n, depth+1); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return asNil(v.RmdirAt(u.ctx, u.b.root, p))
}

// file makes a regular file. It is dressed by its descriptor: the name may be another's by then.
func (u *unpacker) file(p *vfs.PathOperation, h *tar.Header, content io.Reader) error {
	f, err := u.b.k.VFS().OpenAt(u.ctx, u.b.root, p, &vfs.OpenOptions{Flags: linux.O_WRONLY | linux.O_CREAT | linux.O_EXCL, Mode: 0o600})
	if err != nil {
		return asErrno(err)
	}
	defer f.DecRef(u.ctx)
	if _, err := io.CopyBuffer(file{u.ctx, f}, struct{ io.Reader }{content}, u.buf); err != nil {
		return err
	}
	steps, err := u.dress(h)
	if err != nil {
		return err
	}
	for _, st := range steps[:len(steps)-1] {
		if err := f.SetStat(u.ctx, st); err != nil {
			return asErrno(err)
		}
	}
	for name, value := range ownXattrs(h) {
		if err := storable(asNil(f.SetXattr(u.ctx, &vfs.SetXattrOptions{Name: name, Value: value}))); err != nil {
			return fmt.Errorf("attribute %.80s: %w", name, err)
		}
	}
	return asNil(f.SetStat(u.ctx, steps[len(steps)-1]))
}

func (u *unpacker) link(p *vfs.PathOperation, h *tar.Header) error {
	target, err := u.inDir(h.Linkname)
	if err != nil {
		return err
	}
	dir, err := u.files.dir(path.Dir(target))
	if err == nil {
		defer dir.DecRef(u.ctx)
		err = asNil(u.b.k.VFS().LinkAt(u.ctx, u.b.root, u.in(dir, path.Base(target)), p))
	}
	if err != nil {
		return &os.PathError{Op: "link", Path: h.Linkname, Err: err}
	}
	return nil
}

// special makes directories, links, pipes and devices. Nothing of them is opened.
func (u *unpacker) special(p *vfs.PathOperation, h *tar.Header, keep bool) error {
	v := u.b.k.VFS()
	var kind uint16
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if kind = linux.S_IFDIR; !keep {
			err = v.MkdirAt(u.ctx, u.b.root, p, &vfs.MkdirOptions{Mode: 0o700})
		}
	case tar.TypeSymlink:
		kind = linux.S_IFLNK
		err = v.SymlinkAt(u.ctx, u.b.root, p, h.Linkname)
	case tar.TypeFifo:
		kind = linux.S_IFIFO
	case tar.TypeChar:
		kind = linux.S_IFCHR
	case tar.TypeBlock:
		kind = linux.S_IFBLK
	}
	if kind == linux.S_IFIFO || kind == linux.S_IFCHR || kind == linux.S_IFBLK {
		err = v.MknodAt(u.ctx, u.b.root, p, &vfs.MknodOptions{
			Mode: linux.FileMode(kind) | 0o600, DevMajor: uint32(h.Devmajor), DevMinor: uint32(h.Devminor),
		})
		if errnoOf(err) == unix.EPERM && kind != linux.S_IFIFO {
			return nil // as docker does in a user namespace
		}
	}
	if err != nil {
		return asErrno(err)
	}
	d, err := u.find(p)
	if err != nil {
		return err
	}
	defer d.DecRef(u.ctx)
	st, err := u.stat(u.in(d, ""))
	if err != nil || st.Mode&linux.S_IFMT != kind { // it is another's by now
		return errors.Join(err, unix.ESTALE)
	}
	return u.dressDentry(u.in(d, ""), h)
}

// dressDentry gives a file what else the entry says.
func (u *unpacker) dressDentry(p *vfs.PathOperation, h *tar.Header) error {
	steps, err := u.dress(h)
	if err != nil {
		return err
	}
	for _, st := range steps {
		if err := u.setStat(p, st); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	for name, value := range ownXattrs(h) {
		if err := storable(asNil(u.b.k.VFS().SetXattrAt(u.ctx, u.b.root, p, &vfs.SetXattrOptions{Name: name, Value: value}))); err != nil {
			return fmt.Errorf("attribute %.80s: %w", name, err)
		}
	}
	return nil
}

func (u *unpacker) setStat(p *vfs.PathOperation, o vfs.SetStatOptions) error {
	return asNil(u.b.k.VFS().SetStatAt(u.ctx, u.b.root, p, &o))
}

// owner sets who owns a file.
func (u *unpacker) owner(uid, gid int) (vfs.SetStatOptions, error) {
	if !u.o.CopyOwners {
		uid, gid = int(u.o.UID), int(u.o.GID)
	}
	if uid < 0 || gid < 0 || uid >= math.MaxUint32 || gid >= math.MaxUint32 {
		return vfs.SetStatOptions{}, invalid(fmt.Errorf("owner %d:%d", uid, gid))
	}
	return vfs.SetStatOptions{Stat: linux.Statx{Mask: linux.STATX_UID | linux.STATX_GID, UID: uint32(uid), GID: uint32(gid)}}, nil
}

// dress is what to set, in order: a change of owner takes the setuid bit, and writing sets the time.
func (u *unpacker) dress(h *tar.Header) ([]vfs.SetStatOptions, error) {
	owner, err := u.owner(h.Uid, h.Gid)
	if err != nil {
		return nil, err
	}
	steps := []vfs.SetStatOptions{owner}
	if h.Typeflag != tar.TypeSymlink {
		steps = append(steps, vfs.SetStatOptions{Stat: linux.Statx{Mask: linux.STATX_MODE, Mode: uint16(h.Mode & 0o7777)}})
	}
	return append(steps, vfs.SetStatOptions{Stat: times(h.ModTime)}), nil
}

// times are those of an entry; without one they are now.
func times(t time.Time) linux.Statx {
	ts := linux.StatxTimestamp{Nsec: linux.UTIME_NOW}
	if !t.IsZero() {
		ts = linux.StatxTimestamp{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	return linux.Statx{Mask: linux.STATX_ATIME | linux.STATX_MTIME, Atime: ts, Mtime: ts}
}

// ownXattrs are the attributes of an entry that are set.
func ownXattrs(h *tar.Header) map[string]string {
	own := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok && sandbox.OwnXattr(name) {
			own[name] = value
		}
	}
	return own
}

// storable is the error of an attribute that had to be set: as docker does, what a file system
// refuses is left out.
func storable(err error) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// lateTimes gives directories their times back, which is best effort.
func (u *unpacker) lateTimes() {
	for i := len(u.late) - 1; i >= 0; i-- {
		op := &vfs.PathOperation{Root: u.root, Start: u.root, Path: fspath.Parse(u.late[i].name)}
		_ = u.setStat(op, vfs.SetStatOptions{Stat: times(u.late[i].time)})
	}
}
