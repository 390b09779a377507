package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Streams are the payload's standard streams: its ends, den's ends, and the
// goroutines that copy between them and the caller.
type Streams struct {
	// Child are the ends that the payload inherits; Own says which are pipes made here.
	Child [3]*os.File
	Own   [3]bool
	close []*os.File
	ends  []*os.File // den's
	// outputs and input are the copies to begin when the payload runs.
	outputs []func() error
	input   func()
	wg      sync.WaitGroup
	mu      sync.Mutex
	errs    []error
}

// newPipe is a pipe whose child end blocks and whose own end can be polled.
func newPipe(ownRead bool) (own, child *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	o, c := fd[1], fd[0]
	if ownRead {
		o, c = fd[0], fd[1]
	}
	// os.NewFile looks at the flag to know whether it can poll.
	if err := unix.SetNonblock(o, true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(o), unix.Close(c))
	}
	return os.NewFile(uintptr(o), "pipe"), os.NewFile(uintptr(c), "pipe"), nil
}

// NewStreams prepares the streams of r. With a terminal there are none yet.
func NewStreams(r *Request) (_ *Streams, err error) {
	s := &Streams{}
	defer func() {
		if err != nil {
			s.CloseChild()
			s.CloseOwn()
		}
	}()
	if r.Spec.Process.Terminal {
		return s, nil
	}
	if err := s.stdin(r.Stdin); err != nil {
		return nil, err
	}
	for i, w := range []io.Writer{r.Stdout, r.Stderr} {
		if err := s.output(i+1, w); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Streams) null(i int) (err error) {
	s.Child[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		s.close = append(s.close, s.Child[i])
	}
	return err
}

func (s *Streams) stdin(r io.Reader) error {
	if f, ok := r.(*os.File); ok && f != nil {
		s.Child[0] = f
		return nil
	}
	if r == nil {
		return s.null(0)
	}
	own, child, err := newPipe(false)
	if err != nil {
		return err
	}
	s.Child[0], s.Own[0] = child, true
	s.close, s.ends = append(s.close, child), append(s.ends, own)
	s.input = func() {
		defer own.Close()
		_, _ = io.Copy(own, r) // the payload may stop reading when it likes
	}
	return nil
}

func (s *Streams) output(i int, w io.Writer) error {
	if f, ok := w.(*os.File); ok && f != nil {
		s.Child[i] = f
		return nil
	}
	if w == nil {
		return s.null(i)
	}
	own, child, err := newPipe(true)
	if err != nil {
		return err
	}
	s.Child[i], s.Own[i] = child, true
	s.close, s.ends = append(s.close, child), append(s.ends, own)
	s.outputs = append(s.outputs, func() error {
		// Closing tells a payload whose output nobody takes any more.
		defer own.Close()
		_, err := io.Copy(w, own)
		return err
	})
	return nil
}

// CloseChild closes what the payload has inherited.
func (s *Streams) CloseChild() {
	for _, f := range s.close {
		f.Close()
	}
	s.close = nil
}

// CloseOwn closes den's ends, where start was not called.
func (s *Streams) CloseOwn() {
	for _, f := range s.ends {
		f.Close()
	}
	s.ends = nil
}

// Start begins to copy.
func (s *Streams) Start() {
	for _, copy := range s.outputs {
		s.wg.Go(func() {
			if err := copy(); err != nil {
				s.mu.Lock()
				s.errs = append(s.errs, fmt.Errorf("copy output: %w", err))
				s.mu.Unlock()
			}
		})
	}
	if s.input != nil {
		// Nobody waits for it: it ends with the caller's reader, whose Read
		// cannot be interrupted.
		go s.input()
	}
}

// Wait returns when all output is copied.
func (s *Streams) Wait() error {
	s.wg.Wait()
	return errors.Join(s.errs...)
}

// Terminal adds the copies of a terminal, of which master is den's end.
func (s *Streams) Terminal(master *os.File, r *Request) {
	out := r.Stdout
	if out == nil {
		out = io.Discard
	}
	s.outputs = append(s.outputs, func() error {
		_, err := io.Copy(out, master)
		if errors.Is(err, unix.EIO) { // how a terminal ends
			return nil
		}
		return err
	})
	if r.Stdin != nil {
		s.input = func() { _, _ = io.Copy(master, r.Stdin) }
	}
}
