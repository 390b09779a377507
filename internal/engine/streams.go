package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/engine/log"
	"den/internal/sandbox"
)

// logDir is the container's log, discardedDir what a container without one keeps for the
// clients that are attached.
const (
	logDir       = "log"
	discardedDir = "output"
)

// pipeBytes is asked for the pipes of a container's output: what fits in is not lost and
// holds up nobody while no den runs.
const pipeBytes = 256 << 10

// streams are den's ends of a container's standard streams.
type streams struct {
	log   *log.Log
	pumps []*log.Pump
	own   []*os.File // den's ends
	child []*os.File // the program's, until it runs
	hold  []*os.File // for the holder
	drain []*os.File // for the holder, until they are empty
	stdin *stdin     // nil if the container has none
	tty   chan struct{}
}

// options of the log, with docker's defaults.
func (c LogConfig) options() (dir string, o log.Options) {
	switch c.Driver {
	case "none":
		return discardedDir, log.Options{MaxBytes: 1 << 20, MaxFiles: 1}
	case "local":
		o = log.Options{MaxBytes: 20 << 20, MaxFiles: 5}
	default:
		o = log.Options{MaxFiles: 1}
	}
	if c.MaxBytes > 0 {
		o.MaxBytes = c.MaxBytes
	}
	if c.MaxFiles > 0 {
		o.MaxFiles = c.MaxFiles
	}
	return logDir, o
}

func openContainerLog(dir string, c LogConfig) (*log.Log, error) {
	name, o := c.options()
	path := filepath.Join(dir, name)
	return log.Open(path, o)
}

// openStreams makes the streams of a container that is about to start, and puts the
// program's ends into r. With detach they are FIFOs that outlive den.
func (c *container) openStreams(r *sandbox.Request) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	dir := c.dir.Path()
	if c.more.LogConfig.Driver == "none" {
		if err := log.Remove(filepath.Join(dir, discardedDir)); err != nil {
			return nil, err
		}
	}
	if s.log, err = openContainerLog(dir, c.more.LogConfig); err != nil {
		return nil, err
	}
	detached := r.Detach != ""
	switch {
	case c.request.TTY && detached: // the sandbox has the terminal, and gives it once it runs
		if c.request.OpenStdin {
			s.stdin = newStdin(nil, false)
		}
		return s, nil
	case c.request.TTY:
		r.Stdout = s.log.Writer(log.Stdout)
		if c.request.OpenStdin {
			read, write := io.Pipe()
			r.Stdin, s.stdin = read, newStdin(write, c.more.StdinOnce)
		}
		return s, nil
	}
	for i, stream := range []log.Stream{log.Stdout, log.Stderr} {
		own, child, err := s.pipe(dir, outputNames[i], detached)
		if err != nil {
			return nil, err
		}
		pump, err := s.log.Pump(stream, own)
		if err != nil {
			return nil, err
		}
		s.pumps = append(s.pumps, pump)
		if i == 0 {
			r.Stdout = child
		} else {
			r.Stderr = child
		}
	}
	if !c.request.OpenStdin {
		return s, nil
	}
	own, child, err := s.input(dir, detached)
	if err != nil {
		return nil, err
	}
	if detached && !c.more.StdinOnce {
		s.hold = append(s.hold, own)
	}
	r.Stdin, s.stdin = child, newStdin(own, c.more.StdinOnce)
	return s, nil
}

// outputNames and inputName are the FIFOs in the container's directory.
var outputNames = [...]string{"stdout", "stderr"}

const inputName = "stdin"

func (s *streams) pipe(dir, name string, lasting bool) (own, child *os.File, err error) {
	if !lasting {
		own, child, err = os.Pipe()
		if err == nil {
			s.own, s.child = append(s.own, own), append(s.child, child)
		}
		return own, child, err
	}
	path := filepath.Join(dir, name)
	if err := makeFIFO(path); err != nil {
		return nil, nil, err
	}
	if own, err = s.openFIFO(path); err != nil {
		return nil, nil, err
	}
	s.drain = append(s.drain, own)
	if child, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		return nil, nil, err
	}
	s.child = append(s.child, child)
	return own, child, nil
}

// openFIFO opens den's end, for reading and writing: then it has no end of file.
func (s *streams) openFIFO(path string) (*os.File, error) {
	own, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s.own = append(s.own, own)
	if conn, err := own.SyscallConn(); err == nil {
		// More than the default is a courtesy that the kernel may refuse.
		_ = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeBytes) })
	}
	return own, nil
}

func (s *streams) input(dir string, lasting bool) (own, child *os.File, err error) {
	if !lasting {
		child, own, err = os.Pipe()
		if err == nil {
			s.own, s.child = append(s.own, own), append(s.child, child)
		}
		return own, child, err
	}
	path := filepath.Join(dir, inputName)
	if err := makeFIFO(path); err != nil {
		return nil, nil, err
	}
	if own, err = s.openFIFO(path); err != nil {
		return nil, nil, err
	}
	if child, err = os.OpenFile(path, os.O_RDONLY, 0); err != nil {
		return nil, nil, err
	}
	s.child = append(s.child, child)
	return own, child, nil
}

// makeFIFO makes a fresh one: what an earlier run has left in it is nobody's.
func makeFIFO(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("fifo %s: %w", path, err)
	}
	return nil
}

// adoptStreams opens the streams of a container that another den has started.
func (c *container) adoptStreams(sb sandbox.Sandbox) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	dir := c.dir.Path()
	if s.log, err = openContainerLog(dir, c.more.LogConfig); err != nil {
		return nil, err
	}
	if c.request.TTY {
		if c.request.OpenStdin {
			s.stdin = newStdin(nil, false)
		}
		s.follow(sb)
		return s, nil
	}
	for i, stream := range []log.Stream{log.Stdout, log.Stderr} {
		own, err := s.openFIFO(filepath.Join(dir, outputNames[i]))
		if err != nil {
			return nil, err
		}
		pump, err := s.log.Pump(stream, own)
		if err != nil {
			return nil, err
		}
		s.pumps = append(s.pumps, pump)
	}
	if c.request.OpenStdin && !c.more.StdinOnce {
		own, err := s.openFIFO(filepath.Join(dir, inputName))
		if err != nil {
			return nil, err
		}
		s.stdin = newStdin(own, false)
	}
	return s, nil
}

// follow copies what the sandbox's terminal shows into the log, where the sandbox leaves
// that to den.
func (s *streams) follow(sb sandbox.Sandbox) {
	t, ok := sb.(sandbox.Terminal)
	if !ok || t.Terminal() == nil {
		return
	}
	master := t.Terminal()
	if s.stdin != nil {
		s.stdin.set(struct{ io.Writer }{master})
	}
	s.tty = make(chan struct{})
	go func() {
		defer close(s.tty)
		// It ends with EIO when nobody has the terminal any more.
		_, _ = io.Copy(struct{ io.Writer }{s.log.Writer(log.Stdout)}, struct{ io.Reader }{master})
	}()
}

// started closes the ends that are the program's.
func (s *streams) started() {
	for _, f := range s.child {
		f.Close()
	}
	s.child = nil
}

// finish takes what the program has left in its pipes. It has ended.
func (s *streams) finish() error {
	var errs []error
	if s.tty != nil {
		<-s.tty
	}
	for _, p := range s.pumps {
		errs = append(errs, p.Finish())
	}
	s.pumps = nil
	s.log.Mark()
	return errors.Join(append(errs, s.close())...)
}

func (s *streams) close() error {
	s.started()
	var errs []error
	for _, f := range s.own {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, p := range s.pumps {
		<-p.Done()
	}
	s.own, s.pumps = nil, nil
	if s.stdin != nil {
		s.stdin.close()
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	return errors.Join(errs...)
}

// A stdin takes what attached clients write for the program.
type stdin struct {
	once bool

	mu     sync.Mutex
	to     io.Writer
	closed bool
}

func newStdin(to io.Writer, once bool) *stdin { return &stdin{to: to, once: once} }

func (s *stdin) set(to io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
}

// Write writes to the program; it may have to wait for it.
func (s *stdin) Write(p []byte) (int, error) {
	s.mu.Lock()
	to, closed := s.to, s.closed
	s.mu.Unlock()
	if closed || to == nil {
		return 0, io.ErrClosedPipe
	}
	return to.Write(p)
}

// done is a client's end: it closes the program's standard input if that was for one client.
func (s *stdin) done() {
	if s.once {
		s.close()
	}
}

func (s *stdin) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if c, ok := s.to.(io.Closer); ok {
		_ = c.Close()
	}
}
