package sentry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux/errno"
	gverrors "gvisor.dev/gvisor/pkg/errors"
	"gvisor.dev/gvisor/pkg/unet"

	"den/internal/sandbox"
)

// control is the sentry's end of the socket. It uses the few ways of sending
// and receiving that the sentry's filter allows.
type control struct {
	socket *unet.Socket
	err    error
	fds    []int
	mu     sync.Mutex
}

func newControl(fd int) *control {
	s, err := unet.NewSocket(fd)
	return &control{socket: s, err: err}
}

// Read reads from the socket and keeps the descriptors that come along.
func (c *control) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	r := c.socket.Reader(true)
	r.EnableFDs(maxFiles)
	n, err := r.ReadVec([][]byte{p})
	if err != nil {
		return n, err
	}
	fds, err := r.ExtractFDs()
	c.fds = append(c.fds, fds...)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// next waits for a command.
func (c *control) next() (*command, descriptors, error) {
	var cmd command
	if err := decode(c, &cmd); err != nil {
		return nil, nil, err
	}
	if len(c.fds) != cmd.Files {
		return nil, nil, fmt.Errorf("%d descriptors of %d came", len(c.fds), cmd.Files)
	}
	fds := c.fds
	c.fds = nil
	return &cmd, fds, nil
}

// tell sends an event.
func (c *control) tell(e *event) error {
	b, err := encode(e)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(b) > 0 {
		n, err := c.socket.Write(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (c *control) close() {
	if c.socket != nil {
		_ = c.socket.Close()
	}
}

// describe is err as den can rebuild it.
func describe(err error) *failure {
	f := &failure{Text: err.Error(), Invalid: errdefs.IsInvalidArgument(err)}
	var e *sandbox.ExecError
	if errors.As(err, &e) {
		f.Code = e.Code
		f.NotInPath = errors.Is(e.Err, sandbox.ErrNotInPath)
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		f.Op, f.Path = pe.Op, pe.Path
	}
	if no := errnoOf(err); no != 0 {
		f.Errno = int32(no)
	}
	return f
}

// opChdir is the operation of an error for a working directory that a program cannot begin in.
const opChdir = "chdir"

// rebuild is the error that a sentry has described.
func (f *failure) rebuild(program string) error {
	var cause error = unix.Errno(f.Errno)
	if f.Op != "" {
		cause = &os.PathError{Op: f.Op, Path: f.Path, Err: cause}
	}
	switch {
	case f.Invalid:
		return invalid(errors.New(f.Text))
	case f.Op == opChdir: // runc's words
		cause = fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", f.Path, unix.Errno(f.Errno))
		return &sandbox.ExecError{Program: program, Code: f.Code, Err: cause}
	case f.NotInPath:
		return &sandbox.ExecError{Program: program, Code: f.Code, Err: sandbox.ErrNotInPath}
	case f.Code != 0:
		return &sandbox.ExecError{Program: program, Code: f.Code, Err: cause}
	case f.Errno != 0:
		return &remoteError{f.Text, unix.Errno(f.Errno)}
	}
	return errors.New(f.Text)
}

// A remoteError is an error of the sentry with its errno.
type remoteError struct {
	text  string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.text }

// Unwrap returns the errno.
func (e *remoteError) Unwrap() error { return e.errno }

// errnoOf finds an errno, of the host or of the sentry; 0 if there is none.
func errnoOf(err error) unix.Errno {
	var host unix.Errno
	if errors.As(err, &host) {
		return host
	}
	var own *gverrors.Error
	if errors.As(err, &own) {
		if no := own.Errno(); no != errno.NOERRNO {
			return unix.Errno(no)
		}
	}
	return 0
}

// asErrno is err with an errno of the host's kind in the place of the sentry's.
func asErrno(err error) error {
	if no := errnoOf(err); no != 0 {
		return no
	}
	return err
}
