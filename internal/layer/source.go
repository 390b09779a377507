package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sys/unix"
)

const (
	// smallFile is the size up to which a file is read ahead.
	smallFile = 64 << 10
	// batchFiles and batchBytes bound one batch of files that are read ahead.
	batchFiles = 64
	batchBytes = 512 << 10
)

// item is a file with its content at hand: data, or an open reader.
type item struct {
	File
	data []byte
	rc   io.ReadCloser
}

// batch is a run of items whose data lies in one buffer.
type batch struct {
	items []item
	arena []byte
	err   error // after the items
}

func (b *batch) close() {
	for _, it := range b.items {
		if it.rc != nil {
			_ = it.rc.Close()
		}
	}
}

// readAhead iterates files in a goroutine of its own, opens them and reads the
// small ones, so that opening and reading the next files overlaps with
// whatever fn does with the present one. It returns when both have ended.
func readAhead(ctx context.Context, files iter.Seq2[File, error], fn func(context.Context, *item) error) error {
	ctx, cancel := context.WithCancel(ctx)
	full := make(chan *batch, 2)
	free := make(chan *batch, 4)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(full)
		p := producer{ctx: ctx, full: full, free: free, size: 2 * smallFile} // most steps change little
		p.run(files)
	}()
	err := consume(ctx, full, free, fn)
	cancel()
	for b := range full { // what was under way when fn failed
		b.close()
	}
	<-done
	return err
}

func consume(ctx context.Context, full <-chan *batch, free chan<- *batch, fn func(context.Context, *item) error) error {
	for b := range full {
		for i := range b.items {
			it := &b.items[i]
			if err := ctx.Err(); err != nil {
				b.close()
				return err
			}
			err := fn(ctx, it)
			if it.rc != nil {
				err = errors.Join(err, it.rc.Close())
				it.rc = nil
			}
			if err != nil {
				b.close()
				return err
			}
		}
		if b.err != nil {
			return b.err
		}
		select {
		case free <- b:
		default:
		}
	}
	return ctx.Err()
}

type producer struct {
	ctx  context.Context
	full chan<- *batch
	free <-chan *batch
	b    *batch
	size int // of the next new arena
}

func (p *producer) run(files iter.Seq2[File, error]) {
	p.next()
	for f, err := range files {
		if err == nil {
			err = p.ctx.Err()
		}
		if err == nil {
			err = p.add(f)
		}
		if err != nil {
			p.b.err = err
			break
		}
		if len(p.b.items) == batchFiles || (p.b.arena != nil && cap(p.b.arena)-len(p.b.arena) <= smallFile) {
			if !p.send() {
				return
			}
			p.next()
		}
	}
	p.send()
}

func (p *producer) next() {
	select {
	case p.b = <-p.free:
		clear(p.b.items)
		p.b.items, p.b.arena = p.b.items[:0], p.b.arena[:0]
	default:
		p.b = &batch{}
	}
}

// send passes the batch on; false means that nobody wants it.
func (p *producer) send() bool {
	select {
	case p.full <- p.b:
		return true
	case <-p.ctx.Done():
		p.b.close()
		return false
	}
}

// add opens f, and reads it if it is small.
func (p *producer) add(f File) error {
	it := item{File: f}
	if f.Mode&unix.S_IFMT != unix.S_IFREG || f.Hardlink || f.Whiteout || f.Size == 0 {
		p.b.items = append(p.b.items, it)
		return nil
	}
	if f.Open == nil {
		return invalid("%s: %d bytes and no way to read them", f.Path, f.Size)
	}
	rc, err := f.Open()
	if err != nil {
		return fmt.Errorf("open %s: %w", f.Path, err)
	}
	if f.Size > smallFile {
		it.rc = rc
		p.b.items = append(p.b.items, it)
		return nil
	}
	err = p.read(&it, rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		return fmt.Errorf("read %s: %w", f.Path, err)
	}
	p.b.items = append(p.b.items, it)
	return nil
}

// read takes a small file into the arena. One byte more than its size is
// asked for, so that a file that grew is noticed without another call.
func (p *producer) read(it *item, r io.Reader) error {
	if p.b.arena == nil {
		p.b.arena = make([]byte, 0, p.size)
		p.size = batchBytes
	}
	start, size := len(p.b.arena), int(it.Size)
	buf := p.b.arena[start : start+size+1]
	n, err := readFull(r, buf, size)
	if err != nil {
		return err
	}
	if n != size {
		return changed(it.Size, n)
	}
	p.b.arena = p.b.arena[:start+size]
	it.data = buf[:size:size]
	return nil
}

// readFull reads until the end of r or of buf. A raw file is at its end when
// a read is short.
func readFull(r io.Reader, buf []byte, want int) (n int, err error) {
	_, raw := r.(*rawFile)
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF || (raw && err == nil && n == want) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func changed[T int | int64](want int64, got T) error {
	if int64(got) > want {
		return fmt.Errorf("file changed while it was read: it has more than the %d bytes that it began with", want)
	}
	return fmt.Errorf("file changed while it was read: %d bytes, it had %d", got, want)
}
