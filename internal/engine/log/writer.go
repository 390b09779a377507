package log

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Options bound a log.
type Options struct {
	// MaxBytes is the size at which a segment is put aside; 0 is never.
	MaxBytes int64
	// MaxFiles is how many segments are kept, at least 1.
	MaxFiles int
}

// maxKept bounds, in bytes, what is kept on disk only because a reader in this process
// has not come that far.
const maxKept = 1 << 30

// A Log is open for writing. It is safe for concurrent use.
type Log struct {
	dir string
	o   Options

	mu      sync.Mutex
	current *segment
	size    int64
	err     error // the first reason why bytes are missing
	copies  bool  // the file system takes no splice
	buffer  []byte

	wake    chan struct{} // closed at the next change; nil while nobody waits
	cursors map[*Cursor]struct{}
	kept    map[int]*segment // removed ones that a cursor has yet to read
	closed  bool
}

// Open opens the log in dir for writing, and makes it if there is none.
func Open(dir string, o Options) (*Log, error) {
	l := &Log{dir: dir, o: o, cursors: map[*Cursor]struct{}{}, kept: map[int]*segment{}}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *Log) open() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	numbers, err := segments(l.dir)
	if err != nil {
		return err
	}
	number := 1
	if len(numbers) > 0 {
		number = numbers[len(numbers)-1]
	}
	if l.current, err = openSegment(l.dir, number, os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if l.size, err = l.current.size(); err != nil {
		return err
	}
	// A full disk, or the machine's end, may have left part of an entry.
	whole, err := l.current.entries()
	if err != nil {
		return err
	}
	return l.current.index.Truncate(whole * entryBytes)
}

// note writes the entry for the bytes that come next.
func (l *Log) note(s Stream) error {
	at, err := l.current.entries()
	if err != nil {
		return err
	}
	b := entry{l.size, s, time.Now().UnixNano()}.appendTo(make([]byte, 0, entryBytes))
	if _, err := l.current.index.WriteAt(b, at*entryBytes); err != nil {
		return errors.Join(err, l.current.index.Truncate(at*entryBytes))
	}
	return nil
}

// room is how many bytes the current segment takes, of n; it goes on to the next
// one if that is none.
func (l *Log) room(n int64) (int64, error) {
	if l.o.MaxBytes <= 0 {
		return n, nil
	}
	if l.size >= l.o.MaxBytes {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	return min(n, l.o.MaxBytes-l.size), nil
}

func (l *Log) rotate() error {
	next, err := openSegment(l.dir, l.current.number+1, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	old := l.current
	l.current, l.size = next, 0
	numbers, err := segments(l.dir)
	if err != nil {
		return errors.Join(err, old.close())
	}
	for len(numbers) > max(1, l.o.MaxFiles) {
		err = errors.Join(err, l.drop(numbers[0]))
		numbers = numbers[1:]
	}
	return errors.Join(err, old.close())
}

// drop removes a segment. A cursor that has not come to it yet gets to read it all the same.
func (l *Log) drop(number int) error {
	for c := range l.cursors {
		if c.number() < number && l.keptBytes() < maxKept {
			if s, err := openSegment(l.dir, number, os.O_RDONLY); err == nil {
				l.kept[number] = s
			}
			break
		}
	}
	path := segmentPath(l.dir, number)
	return errors.Join(os.Remove(path+indexSuffix), os.Remove(path+dataSuffix))
}

func (l *Log) keptBytes() (sum int64) {
	for _, s := range l.kept {
		n, _ := s.size()
		sum += n
	}
	return sum
}

// fail remembers why bytes are missing. The caller goes on: a full disk must not end
// or hold up the program.
func (l *Log) fail(err error) {
	if l.err == nil {
		l.err = fmt.Errorf("container log: output is missing: %w", err)
	}
}

// changed wakes who waits. The caller holds the lock.
func (l *Log) changed() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// waiter is closed at the next change.
func (l *Log) waiter() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wake == nil {
		l.wake = make(chan struct{})
		if l.closed {
			close(l.wake)
		}
	}
	return l.wake
}

// Mark says that a run of the container ends here: what comes later does not go on
// with its last lines.
func (l *Log) Mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.note(Mark); err != nil {
		l.fail(err)
	}
	l.changed()
}

// Writer takes what cannot be read from a pipe. Its Write never fails.
func (l *Log) Writer(s Stream) *Writer { return &Writer{l, s} }

// A Writer appends to one stream of a log.
type Writer struct {
	log    *Log
	stream Stream
}

// Write appends p.
func (w *Writer) Write(p []byte) (int, error) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.log.append(w.stream, p)
	return len(p), nil
}

func (l *Log) append(s Stream, p []byte) {
	defer l.changed()
	for len(p) > 0 {
		n, err := l.room(int64(len(p)))
		if err == nil {
			err = l.note(s)
		}
		if err == nil {
			_, err = l.current.data.WriteAt(p[:n], l.size)
		}
		if err != nil {
			l.fail(errors.Join(err, l.current.data.Truncate(l.size)))
			return
		}
		l.size += n
		p = p[n:]
	}
}

// Close ends the writing; the error says, too, whether bytes are missing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	l.changed()
	errs := []error{l.err, l.current.close()}
	return errors.Join(errs...)
}
