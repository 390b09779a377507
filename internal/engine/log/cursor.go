package log

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// maxChunk bounds a chunk, in bytes.
const maxChunk = 64 << 10

// A Chunk is a run of bytes of one stream. Data is valid until the next call.
type Chunk struct {
	Stream Stream
	Time   time.Time
	Data   []byte
}

// A Cursor reads a log from a place on, in the order of arrival. It is used by one
// goroutine. Close it.
type Cursor struct {
	dir string
	log *Log // nil: another process writes, or nobody
	seg *segment
	// kept says that seg is the log's and not to be closed.
	next   int   // the entry to go on with
	at     int64 // the byte to go on with
	in     entry // the entry that at lies in, while open is set
	open   bool
	buffer []byte
}

// Read is a cursor at the beginning of the log in dir, which another process may write.
func Read(dir string) (*Cursor, error) {
	c := &Cursor{dir: dir}
	if err := c.first(); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return c, nil
}

// Cursor is one at the beginning of the log.
func (l *Log) Cursor() (*Cursor, error) { return l.cursor((*Cursor).first) }

// End is a cursor that gets what comes from now on.
func (l *Log) End() (*Cursor, error) { return l.cursor((*Cursor).last) }

func (l *Log) cursor(place func(*Cursor) error) (*Cursor, error) {
	c := &Cursor{dir: l.dir, log: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := place(c); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	l.cursors[c] = struct{}{}
	return c, nil
}

// End is a cursor at the end of the log in dir, which nobody writes yet.
func End(dir string) (*Cursor, error) {
	c := &Cursor{dir: dir}
	if err := c.last(); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return c, nil
}

func (c *Cursor) first() error {
	numbers, err := segments(c.dir)
	if isMissing(err) || err == nil && len(numbers) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range numbers { // the first may be dropped in this moment
		if err = c.enter(n); !isMissing(err) {
			return err
		}
	}
	return err
}

func (c *Cursor) last() error {
	numbers, err := segments(c.dir)
	if isMissing(err) || err == nil && len(numbers) == 0 {
		return nil
	}
	if err == nil {
		err = c.enter(numbers[len(numbers)-1])
	}
	if err != nil {
		return err
	}
	if c.at, err = c.seg.size(); err != nil {
		return err
	}
	n, err := c.seg.entries()
	c.next = int(n)
	return err
}

// enter opens segment n, and leaves the one before.
func (c *Cursor) enter(n int) error {
	s, err := openSegment(c.dir, n, os.O_RDONLY)
	if err != nil {
		return err
	}
	c.take(s)
	return nil
}

func (c *Cursor) take(s *segment) {
	if c.seg != nil {
		_ = c.seg.close() // read only
	}
	c.seg, c.next, c.at, c.open = s, 0, 0, false
}

// number is the segment's; 0 before there is one.
func (c *Cursor) number() int {
	if c.seg == nil {
		return 0
	}
	return c.seg.number
}

// Follow makes l the log that c reads: it was not open for writing before.
func (c *Cursor) Follow(l *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.log = l
	l.cursors[c] = struct{}{}
}

// Next returns the next chunk, or a Mark; io.EOF says that there is no more now.
func (c *Cursor) Next() (Chunk, error) {
	for {
		if c.seg == nil {
			if err := c.first(); err != nil {
				return Chunk{}, fmt.Errorf("read log: %w", err)
			}
			if c.seg == nil {
				return Chunk{}, io.EOF
			}
		}
		chunk, err := c.here()
		if !errors.Is(err, io.EOF) {
			return chunk, err
		}
		// What is in this segment is all there only if there was a next one before.
		onward, err := c.onward()
		if err != nil {
			return Chunk{}, fmt.Errorf("read log: %w", err)
		}
		if onward == nil {
			return Chunk{}, io.EOF
		}
		chunk, err = c.here()
		if !errors.Is(err, io.EOF) {
			return chunk, errors.Join(err, onward.close())
		}
		c.take(onward)
		c.passed()
	}
}

// here is the next chunk of this segment.
func (c *Cursor) here() (Chunk, error) {
	// In this order: every byte below size has its entry in the index by now.
	size, err := c.seg.size()
	if err != nil {
		return Chunk{}, fmt.Errorf("read log: %w", err)
	}
	count, err := c.seg.entries()
	if err != nil {
		return Chunk{}, fmt.Errorf("read log: %w", err)
	}
	for {
		end := size
		if int64(c.next) < count {
			following, err := c.seg.entry(int64(c.next))
			if err != nil {
				return Chunk{}, fmt.Errorf("read log: %w", err)
			}
			if !c.open || following.offset <= c.at {
				c.next++
				c.in, c.open = following, true
				c.at = max(c.at, following.offset) // a cursor that began at the end may jump
				if following.stream == Mark {
					c.open = false
					return Chunk{Stream: Mark, Time: following.time()}, nil
				}
				continue
			}
			end = min(size, following.offset)
		}
		if !c.open || end <= c.at {
			return Chunk{}, io.EOF
		}
		return c.read(end)
	}
}

func (c *Cursor) read(end int64) (Chunk, error) {
	if c.buffer == nil {
		c.buffer = make([]byte, maxChunk)
	}
	n, err := c.seg.data.ReadAt(c.buffer[:min(maxChunk, end-c.at)], c.at)
	if n == 0 && err != nil {
		return Chunk{}, fmt.Errorf("read log: %w", err)
	}
	c.at += int64(n)
	return Chunk{Stream: c.in.stream, Time: c.in.time(), Data: c.buffer[:n]}, nil
}

// onward opens the segment after this one; nil if there is none yet.
func (c *Cursor) onward() (*segment, error) {
	if c.log == nil {
		return c.later()
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if s := c.log.kept[c.number()+1]; s != nil {
		return s.again()
	}
	return c.later()
}

// later opens the first segment on disk that comes after this one.
func (c *Cursor) later() (*segment, error) {
	numbers, err := segments(c.dir)
	if err != nil && !isMissing(err) {
		return nil, err
	}
	for _, n := range numbers {
		if n <= c.number() {
			continue
		}
		s, err := openSegment(c.dir, n, os.O_RDONLY)
		if !isMissing(err) {
			return s, err
		}
	}
	return nil, nil
}

// again opens the segment once more.
func (s *segment) again() (*segment, error) {
	data, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", s.data.Fd()))
	if err != nil {
		return nil, err
	}
	index, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", s.index.Fd()))
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return &segment{s.number, data, index}, nil
}

// passed lets go of what was kept for c.
func (c *Cursor) passed() {
	if c.log == nil {
		return
	}
	l := c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	l.release()
}

// release closes the removed segments that no cursor has yet to come to.
func (l *Log) release() {
	for n, s := range l.kept {
		wanted := false
		for c := range l.cursors {
			wanted = wanted || c.number() < n
		}
		if !wanted {
			delete(l.kept, n)
			_ = s.close() // read only
		}
	}
}

// Changed is closed when there may be more; nil if that can only be found out by looking.
// Ask before Next, or a change is missed.
func (c *Cursor) Changed() <-chan struct{} {
	if c.log == nil {
		return nil
	}
	return c.log.waiter()
}

// Wait returns when there may be more.
func (c *Cursor) Wait(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close frees the cursor.
func (c *Cursor) Close() error {
	if c.log != nil {
		c.log.mu.Lock()
		delete(c.log.cursors, c)
		c.log.release()
		c.log.mu.Unlock()
	}
	if c.seg == nil {
		return nil
	}
	return c.seg.close()
}
