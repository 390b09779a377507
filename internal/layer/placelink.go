package layer

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// record makes the empty file that stands for a device node. It is den's own, and nobody
// else may write to it, or its mark would not count.
func (p *placer) record(dirfd int, e *oci.Entry) error {
	stand := *e
	stand.Mode, stand.Xattrs = unix.S_IFREG|0o600, nil
	fd, err := p.file(dirfd, &stand)
	if err != nil {
		return err
	}
	p.devices++
	if err = unix.Fsetxattr(fd, sys.DeviceAttr, p.inode(e).Format(), 0); err != nil {
		err = &os.PathError{Op: "record device", Path: e.Path, Err: err}
	} else {
		err = setTime(fd, e.ModTime)
	}
	return errors.Join(err, unix.Close(fd))
}

func (p *placer) whiteout(dirfd int, e *oci.Entry) error {
	err := unix.Mknodat(dirfd, baseOf(e.Path), unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return &os.PathError{Op: "whiteout", Path: e.Path, Err: err}
		}
		return nil
	}
	// A whiteout only counts for the layers below (OCI image-spec, layer.md):
	// what this layer has there stays, but hides what they have.
	var st unix.Stat_t
	if err := sys.LstatAt(dirfd, baseOf(e.Path), &st); err != nil {
		return &os.PathError{Op: "whiteout", Path: e.Path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return p.setOpaque(dirfd, e.Path)
	}
	return nil
}

// opaque marks a directory, which may come later or never.
func (p *placer) opaque(dirfd int, e *oci.Entry) error {
	var st unix.Stat_t
	err := sys.LstatAt(dirfd, baseOf(e.Path), &st)
	if errors.Is(err, unix.ENOENT) || (err == nil && sys.IsWhiteout(&st)) {
		dir := impliedDir(e.Path)
		dir.Opaque = true
		return p.dir(dirfd, &dir)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalid("it is marked as an opaque directory and is none")
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: e.Path, Err: err}
	}
	return p.setOpaque(dirfd, e.Path)
}

func (p *placer) setOpaque(dirfd int, path string) error {
	if err := sys.SetXattrAt(dirfd, baseOf(path), sys.OpaqueAttr, []byte("y")); err != nil {
		return xattrError(path, sys.OpaqueAttr, 1, err)
	}
	return nil
}

// hardlink gives an existing file another name.
func (p *placer) hardlink(e *oci.Entry) error {
	// The target's directory is found from the root and by the same rules.
	link, err := p.at(e.Link)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	base := baseOf(e.Link)
	var st unix.Stat_t
	switch err := sys.LstatAt(link, base, &st); {
	case errors.Is(err, unix.ENOENT):
		return invalid("hard link to %.200s, which is not in this layer", e.Link)
	case err != nil:
		return &os.PathError{Op: "lstat", Path: e.Link, Err: err}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR, sys.IsWhiteout(&st):
		return invalid("hard link to %.200s, which is a directory or removed", e.Link)
	}
	if link, err = unix.FcntlInt(uintptr(link), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "dup", Path: e.Link, Err: err}
	}
	defer func() { _ = unix.Close(link) }()
	dirfd, err := p.at(e.Path)
	if err != nil {
		return err
	}
	p.top().dirty = true
	var here unix.Stat_t
	if err := sys.LstatAt(dirfd, baseOf(e.Path), &here); err == nil && here.Ino == st.Ino && here.Dev == st.Dev {
		return nil // the same file already; removing one name might remove the last
	}
	err = p.making(dirfd, e, func() error { return unix.Linkat(link, base, dirfd, baseOf(e.Path), 0) })
	if err == nil && p.o.Recorded {
		return p.recordLink(link, base, dirfd, baseOf(e.Path), &st)
	}
	if errors.Is(err, unix.ENOENT) { // the target lay in the directory that had to go
		return invalid("hard link to %.200s, in the directory that it replaces", e.Link)
	}
	return err
}

// linked gives a hard link the attributes of its file, which is what a walk of
// the tree will find.
func (p *placer) linked(e *oci.Entry) error {
	dirfd, err := p.at(e.Path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := sys.LstatAt(dirfd, baseOf(e.Path), &st); err != nil {
		return fmt.Errorf("lstat: %w", err)
	}
	e.Mode, e.UID, e.GID, e.ModTime = st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Sec, 0)
	return nil
}

func (p *placer) recorded() int { return p.devices }
