package layer

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/lower"
	"den/internal/sys"
)

// walkDir is a directory of the walk. Files opened after the walk left it
// are found by their path again.
type walkDir struct {
	root, path string

	mu sync.Mutex
	in lower.Dir // nil: closed
}

func (d *walkDir) attrs() (sys.FileAttrs, error) {
	a, err := d.in.Attrs(".")
	if err != nil {
		return a, &os.PathError{Op: "getxattr", Path: d.path, Err: err}
	}
	return a, nil
}

func (d *walkDir) open(path, base string) (io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.in
	if in == nil {
		root, err := lower.Open(d.root)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		if in, err = root.OpenBeneath(dirOf(path)); err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer in.Close()
	}
	f, err := in.Open(base)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if f.Content != nil {
		return f.Content, nil
	}
	return &rawFile{fd: f.FD, path: path}, nil
}

func closeDirs(dirs []*walkDir) {
	for _, d := range dirs {
		d.mu.Lock()
		if d.in != nil {
			d.in.Close()
			d.in = nil
		}
		d.mu.Unlock()
	}
}

// rawFile reads a regular file without the runtime's poller, which is three
// system calls less for each of the many small files.
type rawFile struct {
	fd   int
	path string
}

// Fd returns the file descriptor.
func (f *rawFile) Fd() uintptr { return uintptr(f.fd) }

// Read reads the next bytes.
func (f *rawFile) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(f.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, &os.PathError{Op: "read", Path: f.path, Err: err}
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Close closes the file.
func (f *rawFile) Close() error {
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil {
		return &os.PathError{Op: "close", Path: f.path, Err: err}
	}
	return nil
}

// rawAt reads at any offset of the file that a descriptor is open on.
type rawAt int

// ReadAt fills p as far as the file goes.
func (f rawAt) ReadAt(p []byte, at int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(int(f), p[n:], at+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, os.NewSyscallError("pread", err)
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}
