package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
)

// copyBytes is how much an ingest moves at once.
const copyBytes = 256 << 10

// Ingest describes a blob that is to be stored.
type Ingest struct {
	Digest oci.Digest
	// SizeBytes is the promised length, -1 when there is no promise.
	SizeBytes int64
	// Fetch returns the bytes from offset on. It is called at most once; a
	// reader that can retry does so by itself.
	Fetch func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Tee, if there is one, gets every byte in order from 0 on: those that
	// arrive, those found from an interrupted try, and those of a blob that is
	// in the store already. They are not verified before Ingest returns.
	Tee io.Writer
	// Moved, if there is one, is told how many bytes there are so far.
	Moved func(n int64)
}

// Ingest returns the blob, after fetching and verifying what is missing of
// it. Of all processes that want one blob, one fetches and the others wait; when
// it dies, the next goes on where it stopped. Wrong bytes are an
// *oci.DigestError, a wrong length is of class errdefs.ErrDataLoss; neither
// leaves anything behind.
func (s *Store) Ingest(ctx context.Context, in Ingest) (*Blob, error) {
	b, err := s.Blob(ctx, in.Digest)
	if errdefs.IsNotFound(err) {
		return s.ingestMissing(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	return in.replay(ctx, b)
}

func (s *Store) ingestMissing(ctx context.Context, in Ingest) (*Blob, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	w, err := s.Work(ctx, "blob", in.Digest.Encoded(), nil)
	if err != nil {
		return nil, fmt.Errorf("ingest %s: %w", in.Digest, err)
	}
	defer w.Done()
	b, err := s.Blob(ctx, in.Digest)
	if err == nil {
		return in.replay(ctx, b)
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	f, err := s.openPartial(in.Digest, w)
	if err != nil {
		return nil, fmt.Errorf("ingest %s: %w", in.Digest, err)
	}
	b, err = s.fill(ctx, in, f)
	if err != nil {
		// What is not known to be wrong is kept for the next try. It is of no
		// use to others when it is this process's duplicate, or nothing, nor on
		// a full disk.
		if w.Duplicate() || errors.Is(err, unix.ENOSPC) || isWrong(err) || isEmpty(f) {
			err = errors.Join(err, removeFile(f.Name()))
		}
		return nil, errors.Join(fmt.Errorf("ingest %s: %w", in.Digest, err), f.Close())
	}
	return b, f.Close()
}

func isWrong(err error) bool {
	_, wrong := errors.AsType[*oci.DigestError](err)
	return wrong || errdefs.IsDataLoss(err)
}

func isEmpty(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Size() == 0
}

// openPartial opens the file that the holder of w appends to.
func (s *Store) openPartial(d oci.Digest, w *Work) (*os.File, error) {
	if w.Duplicate() {
		return s.newTmp(unix.LOCK_SH, createFile)
	}
	if err := failpoint.Hit("store.ingest.open"); err != nil {
		return nil, err
	}
	return os.OpenFile(s.path("ingest", d.Encoded()), os.O_RDWR|os.O_CREATE, 0o644)
}

// fill completes f, verifies and publishes it.
func (s *Store) fill(ctx context.Context, in Ingest, f *os.File) (*Blob, error) {
	p := &partial{store: s, in: in, file: f, hash: sha256.New(), buf: make([]byte, copyBytes)}
	if err := p.resume(ctx); err != nil {
		return nil, err
	}
	var err error
	if p.room, err = s.Reserve(ctx, max(in.SizeBytes-p.n, -1)); err != nil {
		return nil, err
	}
	defer p.room.Close()
	if err := p.fetch(ctx); err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, p.hash); got != in.Digest {
		return nil, &oci.DigestError{Want: in.Digest, Got: got}
	}
	return s.publishBlob(ctx, f, in.Digest)
}

// replay gives a blob that is there already to the tee.
func (in Ingest) replay(ctx context.Context, b *Blob) (*Blob, error) {
	if in.SizeBytes >= 0 && b.Size() != in.SizeBytes {
		err := fmt.Errorf("ingest %s: it has %d bytes, want %d: %w", in.Digest, b.Size(), in.SizeBytes, errdefs.ErrDataLoss)
		return nil, errors.Join(err, b.Close())
	}
	if in.Tee != nil {
		if _, err := io.CopyBuffer(onlyWriter{in.Tee}, &ctxReader{ctx, b.Reader()}, make([]byte, copyBytes)); err != nil {
			return nil, errors.Join(fmt.Errorf("ingest %s: %w", in.Digest, err), b.Close())
		}
	}
	if in.Moved != nil {
		in.Moved(b.Size())
	}
	return b, nil
}

// onlyWriter hides a ReaderFrom, which would ignore our buffer.
type onlyWriter struct{ io.Writer }

// A partial is a blob that is not complete yet.
type partial struct {
	store *Store
	room  *Reservation
	in    Ingest
	file  *os.File
	hash  hash.Hash
	buf   []byte
	n     int64 // bytes in file, hash and tee
}

// resume passes over the bytes that an interrupted try left in the file.
func (p *partial) resume(ctx context.Context) error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	if p.in.SizeBytes >= 0 && info.Size() > p.in.SizeBytes {
		return p.file.Truncate(0)
	}
	r := &ctxReader{ctx, io.NewSectionReader(p.file, 0, info.Size())}
	for {
		n, err := r.Read(p.buf)
		if err := p.pass(p.buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fetch appends the bytes that are missing.
func (p *partial) fetch(ctx context.Context) error {
	if p.n == p.in.SizeBytes {
		return nil
	}
	body, err := p.in.Fetch(ctx, p.n)
	if err != nil {
		return err
	}
	err = p.append(ctx, &ctxReader{ctx, body})
	return errors.Join(err, body.Close())
}

func (p *partial) append(ctx context.Context, r io.Reader) error {
	for {
		n, err := r.Read(p.buf)
		if p.in.SizeBytes >= 0 && p.n+int64(n) > p.in.SizeBytes {
			return fmt.Errorf("longer than the promised %d bytes: %w", p.in.SizeBytes, errdefs.ErrDataLoss)
		}
		if n > 0 {
			if err := p.write(ctx, p.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if p.in.SizeBytes >= 0 && p.n < p.in.SizeBytes {
		return fmt.Errorf("%d of %d bytes: %w", p.n, p.in.SizeBytes, io.ErrUnexpectedEOF)
	}
	return nil
}

func (p *partial) write(ctx context.Context, b []byte) error {
	if err := p.room.Ensure(ctx, int64(len(b))); err != nil {
		return err
	}
	err := p.store.RetryFull(ctx, func() error {
		if err := failpoint.Hit("store.ingest.write"); err != nil {
			return err
		}
		_, err := p.file.WriteAt(b, p.n)
		return err
	})
	if err != nil {
		return err
	}
	p.room.Wrote(int64(len(b)))
	return p.pass(b)
}

// pass gives the next bytes, which are in the file, to the hash and the tee.
func (p *partial) pass(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p.hash.Write(b)
	p.n += int64(len(b))
	if p.in.Tee != nil {
		if _, err := p.in.Tee.Write(b); err != nil {
			return fmt.Errorf("tee: %w", err)
		}
	}
	if p.in.Moved != nil {
		p.in.Moved(p.n)
	}
	return nil
}
