package ops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// localRacyNanos is how much older than the moment of hashing a file's
	// times must be to vouch for its content: file systems keep times in steps,
	// and a change within the same step does not show.
	localRacyNanos = int64(2 * time.Second)
	// localTries is how often a file that changes while it is read is read.
	localTries = 3
	// localBufBytes is what one read takes. It also holds every list of extended
	// attributes and every value, which Linux bounds at 64 KiB.
	localBufBytes = 128 << 10
)

// errLocalChanged is the cause of an error about a file that somebody else
// writes to while it is read.
var errLocalChanged = fmt.Errorf("changed while it was being read; build again when nothing writes to it: %w", errdefs.ErrFailedPrecondition)

func unixTime(t unix.Timespec) time.Time { return time.Unix(t.Unix()) }

// localReader opens and hashes the files of one directory tree, for one
// goroutine. It never follows a symbolic link.
type localReader struct {
	root int
	sum  hash.Hash
	buf  []byte
	head []byte
}

func newLocalReader(root int) *localReader {
	return &localReader{root: root, sum: sha256.New(), buf: make([]byte, localBufBytes)}
}

// openBelow opens p below the directory root for reading, without following
// symbolic links or waiting for a fifo's writer.
func openBelow(root int, p string, flags int) (int, error) {
	flags |= unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	for {
		fd, err := unix.Openat2(root, p, &unix.OpenHow{
			Flags:   uint64(flags),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			return openStepwise(root, p, flags)
		}
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
}

// openStepwise does what openBelow does where the kernel (before 5.6) or a
// seccomp filter has no openat2.
func openStepwise(root int, p string, flags int) (int, error) {
	at := root
	for {
		part, rest, more := strings.Cut(p, "/")
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := -1, error(unix.EXDEV)
		if part != ".." {
			fd, err = unix.Openat(at, part, f, 0)
		}
		if at != root {
			unix.Close(at)
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: p, Err: err}
		}
		if !more {
			return fd, nil
		}
		at, p = fd, rest
	}
}

// stat describes name in dir. It returns nil for what is gone and for sockets,
// which no context contains.
func (r *localReader) stat(dir int, name, p string) (*localEntry, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil, nil
	}
	e := newLocalEntry(p, &st)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if e.Link, err = readlinkAt(dir, name); err != nil {
			return nil, &os.PathError{Op: "readlink", Path: p, Err: err}
		}
	}
	return e, nil
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// describe completes the directory e, which is open as fd.
func (r *localReader) describe(e *localEntry, fd int) error {
	if e.Path == "." {
		e.digest = sha256.Sum256(nil) // as BuildKit has it for what a client sent
		return nil
	}
	if err := r.xattrs(e, fd); err != nil {
		return err
	}
	r.hashHeader(e)
	return nil
}

// hashSpecial completes what has no data: links, fifos and devices.
func (r *localReader) hashSpecial(dir int, e *localEntry) error {
	// There is no way to open a symbolic link or a device just for its
	// attributes, so they are read by the directory's own name in /proc.
	name := e.Path[strings.LastIndexByte(e.Path, '/')+1:]
	at := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	attrs, err := r.readXattrs(
		func(b []byte) (int, error) { return unix.Llistxattr(at, b) },
		func(k string, b []byte) (int, error) { return unix.Lgetxattr(at, k, b) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "listxattr", Path: e.Path, Err: err}
	}
	e.Xattrs = attrs
	r.hashHeader(e)
	return nil
}

func (r *localReader) hashHeader(e *localEntry) {
	r.head = appendTarsum(r.head[:0], &e.Entry)
	e.digest = sha256.Sum256(r.head)
}

// hash reads the regular file e.
func (r *localReader) hash(ctx context.Context, e *localEntry) error {
	for try := 1; ; try++ {
		err := r.hashOnce(ctx, e)
		if !errors.Is(err, errLocalChanged) || try == localTries {
			return err
		}
	}
}

func (r *localReader) hashOnce(ctx context.Context, e *localEntry) error {
	fd, err := openBelow(r.root, e.Path, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now := time.Now().UnixNano()
	before, err := statOpen(fd, e.Path)
	if err != nil {
		return err
	}
	if before.Mode&unix.S_IFMT != unix.S_IFREG {
		return &os.PathError{Op: "read", Path: e.Path, Err: errLocalChanged}
	}
	e.stat, e.Mode, e.Size, e.ModTime = before, before.Mode, before.Size, time.Unix(0, before.Mtime)
	if err := r.xattrs(e, fd); err != nil {
		return err
	}
	if err := r.sumFile(ctx, e, fd); err != nil {
		return err
	}
	after, err := statOpen(fd, e.Path)
	if err != nil {
		return err
	}
	if !after.same(before) {
		return &os.PathError{Op: "read", Path: e.Path, Err: errLocalChanged}
	}
	e.racy = max(before.Mtime, before.Ctime) > now-localRacyNanos
	return nil
}

func statOpen(fd int, p string) (localStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return localStat{}, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	return newLocalStat(&st), nil
}

// sumFile sets e's digest from its header and the data of fd, which must have
// the length that the header says.
func (r *localReader) sumFile(ctx context.Context, e *localEntry, fd int) error {
	r.sum.Reset()
	r.head = appendTarsum(r.head[:0], &e.Entry)
	r.sum.Write(r.head)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := unix.Read(fd, r.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: e.Path, Err: err}
		}
		r.sum.Write(r.buf[:got])
		n += int64(got)
		if got == 0 || n > e.Size {
			break
		}
	}
	if n != e.Size {
		return &os.PathError{Op: "read", Path: e.Path, Err: errLocalChanged}
	}
	r.sum.Sum(e.digest[:0])
	return nil
}

// xattrs reads the extended attributes of the open file fd.
func (r *localReader) xattrs(e *localEntry, fd int) error {
	attrs, err := r.readXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(k string, b []byte) (int, error) { return unix.Fgetxattr(fd, k, b) })
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: e.Path, Err: err}
	}
	e.Xattrs = attrs
	return nil
}

// readXattrs reads the attributes that belong to a file wherever it is; see
// tarsumXattr.
func (r *localReader) readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	n, err := list(r.buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string][]byte
	for k := range strings.SplitSeq(string(r.buf[:n]), "\x00") {
		if k == "" || !tarsumXattr(k) {
			continue
		}
		n, err := get(k, r.buf)
		if err != nil {
			continue // not readable by this user, as for docker's client
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[k] = bytes.Clone(r.buf[:n])
	}
	return out, nil
}
