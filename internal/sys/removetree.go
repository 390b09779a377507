package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxRemoveDepth bounds how many directories RemoveTree holds open at once. A
// deeper one is moved to the top of the tree first, so that a hostile layer
// can not use up the process's files.
const maxRemoveDepth = 64

// RemoveTree removes path and everything beneath it without following a
// symbolic link. Unlike os.RemoveAll it opens up directories whose mode keeps
// their owner out (0000, 0555), which layers may well hold. Who still has a large file
// open finds it empty. A path that is not there is no error.
func RemoveTree(path string) error {
	shrink(unix.AT_FDCWD, path)
	err := unix.Unlink(path)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Rmdir(path)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	fd, err := openDirAt(unix.AT_FDCWD, path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	r := remover{top: os.NewFile(uintptr(fd), path)}
	err = r.run(path)
	if err := errors.Join(err, r.top.Close()); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// maxRemoveTries bounds how often somebody else who removes the tree may move
// something up to top that was seen empty.
const maxRemoveTries = 100

func (r *remover) run(path string) error {
	for try := 1; ; try++ {
		if err := r.empty(r.top, 0); err != nil {
			return err
		}
		err := unix.Rmdir(path)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.ENOTEMPTY) || try == maxRemoveTries:
			return os.NewSyscallError("rmdir", err)
		}
		if _, err := r.top.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

type remover struct {
	top *os.File
	seq int // directories moved up to top so far
}

// batch is how many names are read at once.
const batch = 1024

// empty removes the members of dir, and what was moved up to it meanwhile.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		n, moved := 0, r.seq
		for {
			names, err := dir.Readdirnames(batch)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ENOENT) { // removed meanwhile
				return err
			}
			if len(names) == 0 {
				break
			}
			n += len(names)
			for _, name := range names {
				if err := r.remove(int(dir.Fd()), name, depth); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		// Removing while reading may have skipped some of many.
		if n <= batch && moved == r.seq {
			return nil
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// largeBytes is what the kernel takes long to free.
const largeBytes = 16 << 20

// shrink empties a large file that has no other name, before it loses this one: until the
// kernel has freed its blocks, which takes seconds on a busy disk, somebody who adds up
// files finds them. An error shows when the name is removed.
func shrink(dir int, name string) {
	var st unix.Stat_t
	large := func() bool {
		return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 && st.Blocks*512 >= largeBytes
	}
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || !large() {
		return
	}
	const flags = unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.EACCES) && unix.Fchmodat(dir, name, 0o600, unix.AT_SYMLINK_NOFOLLOW) == nil {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if unix.Fstat(fd, &st) == nil && large() {
		_ = unix.Ftruncate(fd, 0)
	}
}

func (r *remover) remove(dir int, name string, depth int) error {
	shrink(dir, name)
	err := unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EACCES):
		// The directory that holds it is closed to us; it is ours, open it up.
		if cerr := unix.Fchmod(dir, 0o700); cerr != nil {
			return err
		}
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			return nil
		}
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	if depth >= maxRemoveDepth {
		return r.moveUp(dir, name)
	}
	fd, err := openDirAt(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil // somebody else is at it too
	}
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	if err := r.empty(sub, depth+1); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// moveUp gives a deep directory a name in top. Its mode is opened first: a new
// parent means a new "..", which is a write.
func (r *remover) moveUp(dir int, name string) error {
	fd, err := openDirAt(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return err
	}
	for {
		r.seq++
		err := unix.Renameat2(dir, name, int(r.top.Fd()), ".deep-"+strconv.Itoa(r.seq), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// openDirAt opens the directory name for reading, after a change of its mode
// if that is what it takes.
func openDirAt(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EACCES):
			return fd, err
		}
		if unix.Fchmodat(dir, name, 0o700, unix.AT_SYMLINK_NOFOLLOW) != nil &&
			chmodPath(dir, name) != nil {
			return -1, err
		}
		return unix.Openat(dir, name, flags, 0)
	}
}

// chmodPath changes a directory's mode through an O_PATH file, for kernels
// without fchmodat2 (before 6.6).
func chmodPath(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o700)
}
