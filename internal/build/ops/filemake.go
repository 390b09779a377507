package ops

import (
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// newFile is an inode as the kernel makes it for the root user in the directory
// of p.
func (t *fileTree) newFile(p string, mode uint32) *fileInode {
	f := &fileInode{}
	f.Mode, f.ModTime = mode, t.now
	if dir, err := t.lstat(path.Dir(p)); err == nil && dir.Mode&unix.S_ISGID != 0 {
		f.GID = dir.GID
		if mode&unix.S_IFMT == unix.S_IFDIR {
			f.Mode |= unix.S_ISGID
		}
	}
	return f
}

// mkdir makes the directory p.
func (t *fileTree) mkdir(p string, perm uint32) (*fileInode, error) {
	f := t.newFile(p, unix.S_IFDIR|perm)
	return f, t.put("mkdir", p, f)
}

// mkdirAll makes p, which has no symbolic links, with its parents.
func (t *fileTree) mkdirAll(p string, perm uint32, owner *fileOwner, utime *time.Time) error {
	e, err := t.lstat(p)
	if err == nil {
		if !isDir(e) {
			return pathError("mkdir", p, syscall.ENOTDIR)
		}
		return nil
	}
	if p == "/" {
		return err
	}
	if err := t.mkdirAll(path.Dir(p), perm, owner, utime); err != nil {
		return err
	}
	f, err := t.mkdir(p, perm&0o777)
	if err != nil {
		return err
	}
	f.Mode &^= unix.S_ISGID // chmod follows the mkdir
	f.own(owner, utime)
	return nil
}

// own gives f an owner and a time, where they are asked for.
func (f *fileInode) own(owner *fileOwner, utime *time.Time) {
	if owner != nil {
		f.UID, f.GID = owner.uid, owner.gid
	}
	if utime != nil {
		f.ModTime = *utime
	}
}
