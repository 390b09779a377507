package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
)

// DefaultMaxEntries is the number of entries that a layer may have unless
// UnpackOptions say otherwise.
const DefaultMaxEntries = 4 << 20

// Unpack makes the tree of a layer tar in dir, an empty directory, in overlay
// form (see UnpackOptions.Image for the other), and says what the tar was. The caller compares the diffID with the one
// it wants and drops the tree if they differ or Unpack fails. r is read to its end.
//
// Owners, modes, times, user attributes and file capabilities are kept. A
// later entry replaces an earlier one; missing parents are made, 0755 and
// owned by root; a link among the parents is resolved inside dir. What cannot
// be made is an error that names the entry (errdefs.ErrInvalidArgument when it
// is the tar's fault). See Reader for what is refused.
func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Applied, error) {
	a, err := unpack(ctx, r, dir, o)
	if err != nil {
		return Applied{}, fmt.Errorf("unpack layer: %w", err)
	}
	return a, nil
}

func unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Applied, error) {
	p, err := newMaker(dir, o)
	if err != nil {
		return Applied{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ahead := newAhead(ctx, r, !o.Unnamed)
	u := unpacker{p: p, o: o}
	u.r = NewReader(ahead)
	u.r.archive = o.Archive
	err = u.run(ctx)
	if err == nil {
		_, err = io.Copy(io.Discard, ahead) // the digest is of all of it
	}
	cancel()
	ahead.wait()
	if err = p.close(err); err != nil {
		return Applied{}, err
	}
	if u.applied.SizeBytes = ahead.size; ahead.hash != nil {
		u.applied.DiffID = digest.NewDigest(digest.SHA256, ahead.hash)
	}
	u.applied.Devices = p.recorded()
	return u.applied, nil
}

type unpacker struct {
	p       maker
	r       *Reader
	o       UnpackOptions
	applied Applied
	buf     []byte
}

func (u *unpacker) run(ctx context.Context) error {
	limit := u.o.MaxEntries
	if limit <= 0 {
		limit = DefaultMaxEntries
	}
	for {
		e, err := u.r.Next()
		if err == io.EOF {
			return ctx.Err()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if u.applied.Entries++; u.applied.Entries > limit {
			return invalid("more than %d entries", limit)
		}
		path := e.Path
		if err := u.one(e); err != nil {
			return fmt.Errorf("%.200s: %w", path, err)
		}
	}
}

func (u *unpacker) one(e *oci.Entry) error {
	done, err := u.p.place(e)
	if done || err != nil {
		return err
	}
	u.applied.TreeBytes += e.Size
	if u.o.MaxBytes > 0 && u.applied.TreeBytes > u.o.MaxBytes {
		return fmt.Errorf("files of more than %d bytes: %w", u.o.MaxBytes, oci.ErrTooLarge)
	}
	to, err := u.p.create(e)
	if err != nil {
		return err
	}
	if e.Size > 0 {
		err = u.write(to, e.Size)
	}
	return u.p.finish(to, e, err)
}

// write copies the present entry's content. The holes of sparse files stay
// holes: they may be far longer than the tar.
func (u *unpacker) write(to room, size int64) error {
	if u.buf == nil {
		u.buf = make([]byte, chunkSize)
	}
	offset, hole := int64(0), false
	for offset < size {
		n, err := io.ReadFull(u.r, u.buf[:min(int64(len(u.buf)), size-offset)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read: %w", err)
		}
		if hole = u.r.sparse && allZero(u.buf[:n]); !hole {
			if err := pwriteAll(to.fd, u.buf[:n], to.at+offset); err != nil {
				return err
			}
		}
		offset += int64(n)
	}
	if hole && !to.image {
		if err := unix.Ftruncate(to.fd, size); err != nil {
			return fmt.Errorf("truncate: %w", err)
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if string(b[:len(zeros)]) != string(zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return string(b) == string(zeros[:len(b)])
}

func pwriteAll(fd int, b []byte, offset int64) error {
	if err := failpoint.Hit("layer.place.write"); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b, offset = b[n:], offset+int64(n)
	}
	return nil
}

// ahead reads a stream, and hashes it if it is to have a name, in a goroutine of its own, a few chunks
// ahead of its reader: decompression and hashing overlap with making files.
type ahead struct {
	full chan chunk
	free chan []byte
	now  chunk
	read int

	hash hash.Hash // nil: nobody asks
	size int64
	done chan struct{}
}

type chunk struct {
	data []byte
	err  error // after data
}

func newAhead(ctx context.Context, r io.Reader, named bool) *ahead {
	a := &ahead{full: make(chan chunk, chunks), free: make(chan []byte, chunks+1), done: make(chan struct{})}
	if named {
		a.hash = sha256.New()
	}
	go func() {
		defer close(a.done)
		defer close(a.full)
		for made := 0; ; {
			var buf []byte
			select {
			case buf = <-a.free:
			default:
				if made < chunks {
					made++
					buf = make([]byte, chunkSize)
				} else {
					select {
					case buf = <-a.free:
					case <-ctx.Done():
						return
					}
				}
			}
			c := fill(r, buf)
			if a.hash != nil {
				a.hash.Write(c.data)
			}
			a.size += int64(len(c.data))
			select {
			case a.full <- c:
			case <-ctx.Done():
				return
			}
			if c.err != nil {
				return
			}
		}
	}()
	return a
}

// fill reads until buf is full or r fails.
func fill(r io.Reader, buf []byte) chunk {
	n := 0
	for empty := 0; n < len(buf); {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return chunk{buf[:n], err}
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return chunk{buf[:n], io.ErrNoProgress}
		}
	}
	return chunk{data: buf}
}

// Read reads from the chunks.
func (a *ahead) Read(p []byte) (int, error) {
	for a.read == len(a.now.data) {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.free <- a.now.data[:cap(a.now.data)]
		}
		c, ok := <-a.full
		if !ok {
			c.err = context.Canceled
		}
		a.now, a.read = c, 0
	}
	n := copy(p, a.now.data[a.read:])
	a.read += n
	return n, nil
}

// wait returns when the goroutine has ended.
func (a *ahead) wait() {
	for range a.full { // it may be waiting for room
	}
	<-a.done
}
