package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
	"den/internal/tree"
)

// What fuse-overlayfs writes besides, or instead of, what the kernel does. The files
// have the names that whiteouts have in tars.
const whiteoutPrefix = ".wh."

var opaqueFiles = []string{".wh..wh..opq", ".wh..opq"}

// foreignAttrs are its attributes; the first two mark opaque directories.
var foreignAttrs = []string{"user.fuseoverlayfs.opaque", "trusted.overlay.opaque",
	"user.fuseoverlayfs.origin", "trusted.overlay.origin", "user.overlay.origin", "user.fuseoverlayfs.nlink"}

const opaqueAttrs = 2

// canonical gives the tree in dir, which fuse-overlayfs wrote above lower, the form of an
// upper directory of the kernel's with userxattr: whiteouts are devices 0:0, and a directory
// is opaque by sys.OpaqueAttr, if it has something to hide.
func canonical(ctx context.Context, dir string, lower []string) error {
	below, err := tree.Stack(lower)
	if err != nil {
		return err
	}
	defer func() { _ = below.Close() }()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return at("open", dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return (&rewriter{ctx, below}).dir(fd, "", below)
}

// A rewriter walks what fuse-overlayfs has written.
type rewriter struct {
	ctx   context.Context
	below tree.FS
}

// dir rewrites a directory. below is nil where an opaque one is above.
func (r *rewriter) dir(fd int, path string, below tree.FS) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	var before unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return at("fstat", path, err)
	}
	names, err := sys.ReadNames(fd)
	if err != nil {
		return at("getdents", path, err)
	}
	opaque, err := takeAttrs(fd, path)
	if err != nil {
		return err
	}
	changed := false
	for _, name := range names {
		if !strings.HasPrefix(name, whiteoutPrefix) {
			continue
		}
		changed = true
		if slices.Contains(opaqueFiles, name) {
			opaque, err = true, unix.Unlinkat(fd, name, 0)
		} else {
			err = toDevice(fd, name)
		}
		if err != nil {
			return at("rewrite", path+"/"+name, err)
		}
	}
	if opaque {
		if err := r.markOpaque(fd, path, below); err != nil {
			return err
		}
		below = nil
	}
	for _, name := range names {
		if strings.HasPrefix(name, whiteoutPrefix) {
			continue
		}
		if err := r.member(fd, strings.TrimPrefix(path+"/"+name, "/"), name, below); err != nil {
			return err
		}
	}
	if changed {
		times := []unix.Timespec{before.Atim, before.Mtim}
		return at("utimensat", path, unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0))
	}
	return nil
}

// toDevice replaces a file that stands for a whiteout, unless what it removed was made anew.
func toDevice(dir int, name string) error {
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return err
	}
	err := unix.Mknodat(dir, strings.TrimPrefix(name, whiteoutPrefix), unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// takeAttrs removes the program's notes from a directory, and says whether one of them was
// that it is opaque.
func takeAttrs(fd int, path string) (opaque bool, err error) {
	for i, attr := range foreignAttrs {
		var value [8]byte
		n, err := unix.Fgetxattr(fd, attr, value[:])
		if err != nil && !errors.Is(err, unix.ERANGE) {
			continue // not there
		}
		opaque = opaque || i < opaqueAttrs && err == nil && string(value[:n]) == "y"
		if err := unix.Fremovexattr(fd, attr); err != nil {
			return false, at("removexattr", path, err)
		}
	}
	return opaque, nil
}

// markOpaque marks a directory that hides something. The program marks every new one, and
// the same changes are to be the same layer, whoever has recorded them.
func (r *rewriter) markOpaque(fd int, path string, below tree.FS) error {
	if below == nil {
		return nil
	}
	if path != "" {
		_, err := below.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return at("setxattr", path, unix.Fsetxattr(fd, sys.OpaqueAttr, []byte("y"), 0))
}

func (r *rewriter) member(dir int, path, name string, below tree.FS) error {
	var st unix.Stat_t
	if err := sys.LstatAt(dir, name, &st); err != nil {
		return at("lstat", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return dropAttrs(dir, name, path, st.Mode)
	}
	fd, err := sys.OpenDirAt(dir, name)
	if err != nil {
		return at("open", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return r.dir(fd, path, below)
}

// dropAttrs removes the program's notes from a file.
func dropAttrs(dir int, name, path string, mode uint32) error {
	if mode&unix.S_IFMT != unix.S_IFREG {
		return nil // has none: user attributes are for files and directories
	}
	file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	for _, attr := range foreignAttrs {
		err := unix.Lremovexattr(file, attr)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return at("removexattr", path, err)
		}
	}
	return nil
}

func at(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}
