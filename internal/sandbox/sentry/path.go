package sentry

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// maxLinks bounds symbolic links on the way to a mount point, as the kernel does.
const maxLinks = 40

// at names path below root, without following a link at its end.
func at(root vfs.VirtualDentry, p string) *vfs.PathOperation {
	return &vfs.PathOperation{Root: root, Start: root, Path: fspath.Parse(p)}
}

// follow names path below root, following links inside it.
func follow(root vfs.VirtualDentry, p string) *vfs.PathOperation {
	op := at(root, p)
	op.FollowFinalSymlink = true
	return op
}

// place is where a path leads: the part that is there, without links, and the names that are missing.
type place struct {
	have    string
	missing []string
	mode    uint16 // of have
}

// full is the whole path.
func (p place) full() string { return path.Join(append([]string{p.have}, p.missing...)...) }

// locate resolves p inside root, link by link, so that whatever is made for it is made
// where the payload will look.
func (b *box) locate(ctx context.Context, root vfs.VirtualDentry, p string) (place, error) {
	v := b.k.VFS()
	rest := strings.Split(p, "/")
	l := place{have: "/", mode: linux.S_IFDIR}
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			if n := len(l.missing); n > 0 {
				l.missing = l.missing[:n-1]
			} else {
				l.have, l.mode = path.Dir(l.have), linux.S_IFDIR
			}
			continue
		case len(l.missing) > 0:
			l.missing = append(l.missing, name)
			continue
		}
		next := path.Join(l.have, name)
		st, err := v.StatAt(ctx, b.root, at(root, next), &vfs.StatOptions{Mask: linux.STATX_TYPE})
		if errnoOf(err) == unix.ENOENT {
			l.missing = append(l.missing, name)
			continue
		}
		if err != nil {
			return l, &os.PathError{Op: "resolve", Path: next, Err: asErrno(err)}
		}
		if st.Mode&linux.S_IFMT != linux.S_IFLNK {
			l.have, l.mode = next, st.Mode&linux.S_IFMT
			continue
		}
		target, err := v.ReadlinkAt(ctx, b.root, at(root, next))
		if err != nil {
			return l, &os.PathError{Op: "readlink", Path: next, Err: asErrno(err)}
		}
		if links++; links > maxLinks {
			return l, &os.PathError{Op: "resolve", Path: p, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			l.have, l.mode = "/", linux.S_IFDIR
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if len(l.missing) > 0 && l.mode != linux.S_IFDIR {
		return l, &os.PathError{Op: "resolve", Path: p, Err: unix.ENOTDIR}
	}
	return l, nil
}

// create makes what is missing at l below root: directories, and last a directory or
// an empty file. It returns what it made.
func (b *box) create(ctx context.Context, root vfs.VirtualDentry, l place, dir bool) ([]string, error) {
	v := b.k.VFS()
	var made []string
	at1 := l.have
	for i, name := range l.missing {
		at1 = path.Join(at1, name)
		var err error
		if i < len(l.missing)-1 || dir {
			err = v.MkdirAt(ctx, b.root, at(root, at1), &vfs.MkdirOptions{Mode: 0o755})
		} else {
			err = v.MknodAt(ctx, b.root, at(root, at1), &vfs.MknodOptions{Mode: linux.S_IFREG | 0o644})
		}
		if errnoOf(err) == unix.EEXIST {
			continue
		}
		if err != nil {
			return made, &os.PathError{Op: "create", Path: at1, Err: asErrno(err)}
		}
		made = append(made, at1)
	}
	return made, nil
}

// copyDirs makes the directories that lead to p in the tree to, each with the
// attributes that it has in from: where both are seen through an overlay, to
// hides nothing of from.
func (b *box) copyDirs(from, to vfs.VirtualDentry, p string) error {
	if p == "/" {
		return b.copyAttributes(from, to, p)
	}
	if err := b.copyDirs(from, to, path.Dir(p)); err != nil {
		return err
	}
	err := b.k.VFS().MkdirAt(b.ctx, b.root, at(to, p), &vfs.MkdirOptions{Mode: 0o755})
	if errnoOf(err) == unix.EEXIST {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: p, Err: asErrno(err)}
	}
	return b.copyAttributes(from, to, p)
}

// copyAttributes gives p of to the owner, mode, attributes and times that p of from has.
func (b *box) copyAttributes(from, to vfs.VirtualDentry, p string) error {
	v := b.k.VFS()
	st, err := v.StatAt(b.ctx, b.root, at(from, p), &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
	if err != nil {
		return &os.PathError{Op: "stat", Path: p, Err: asErrno(err)}
	}
	names, err := v.ListXattrAt(b.ctx, b.root, at(from, p), linux.XATTR_LIST_MAX)
	if err != nil && errnoOf(err) != unix.EOPNOTSUPP {
		return &os.PathError{Op: "listxattr", Path: p, Err: asErrno(err)}
	}
	for _, name := range names {
		value, err := v.GetXattrAt(b.ctx, b.root, at(from, p), &vfs.GetXattrOptions{Name: name, Size: linux.XATTR_SIZE_MAX})
		if err == nil {
			err = v.SetXattrAt(b.ctx, b.root, at(to, p), &vfs.SetXattrOptions{Name: name, Value: value})
		}
		if err != nil {
			return &os.PathError{Op: "copy xattr " + name + " of", Path: p, Err: asErrno(err)}
		}
	}
	err = v.SetStatAt(b.ctx, b.root, at(to, p), &vfs.SetStatOptions{Stat: linux.Statx{
		Mask: linux.STATX_UID | linux.STATX_GID | linux.STATX_MODE | linux.STATX_ATIME | linux.STATX_MTIME,
		UID:  st.UID, GID: st.GID, Mode: st.Mode, Atime: st.Atime, Mtime: st.Mtime,
	}})
	if err != nil {
		return &os.PathError{Op: "set attributes of", Path: p, Err: asErrno(err)}
	}
	return nil
}

// removeMade removes, in reverse order, the mount points that den made in a tree
// that stays, as far as they are empty. The times of the directories that they were in stay.
func (b *box) removeMade(root vfs.VirtualDentry) error {
	v := b.k.VFS()
	var errs []error
	for i := len(b.made) - 1; i >= 0; i-- {
		p := b.made[i]
		st, err := v.StatAt(b.ctx, b.root, at(root, p), &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
		switch {
		case err != nil:
			continue
		case st.Mode&linux.S_IFMT == linux.S_IFDIR:
			err = v.RmdirAt(b.ctx, b.root, at(root, p))
		case st.Mode&linux.S_IFMT == linux.S_IFREG && st.Size == 0 && st.Nlink == 1:
			err = v.UnlinkAt(b.ctx, b.root, at(root, p))
		}
		if no := errnoOf(err); err != nil && no != unix.ENOTEMPTY && no != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove mount point %s: %w", p, asErrno(err)))
		}
	}
	return errors.Join(errs...)
}
