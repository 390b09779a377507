package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
)

// A Blob is immutable bytes under their digest, leased until Close.
type Blob struct {
	digest oci.Digest
	size   int64
	file   *os.File
	close  func() error
}

// Blob returns the blob named d; the error is of class errdefs.ErrNotFound
// when neither the store nor a base has it.
func (s *Store) Blob(ctx context.Context, d oci.Digest) (*Blob, error) {
	return orBase(ctx, s, func(s *Store) (*Blob, error) { return s.ownBlob(ctx, d) })
}

func (s *Store) ownBlob(ctx context.Context, d oci.Digest) (*Blob, error) {
	if err := oci.CheckDigest(d); err != nil {
		return nil, fmt.Errorf("blob: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	o := blobObject(d)
	l, err := s.acquire(ctx, o)
	if errors.Is(err, errBusy) {
		return s.unleasedBlob(d)
	}
	if err != nil {
		return nil, err
	}
	if l.info.Size == 0 && d != digest.FromBytes(nil) {
		// Torn by a crash on a file system that does not keep its promises.
		err := errors.Join(missing(o), l.release())
		_, derr := s.discard(s.path(o.rel()))
		return nil, errors.Join(err, derr)
	}
	return leasedBlob(d, l), nil
}

func leasedBlob(d oci.Digest, l *lease) *Blob {
	return &Blob{digest: d, size: l.info.Size, file: l.file, close: sync.OnceValue(l.release)}
}

// unleasedBlob opens a blob that somebody keeps locked. An open file stays
// readable whatever becomes of its name; what is lost is the promise that the
// blob is still there when a record that names it is written, and then that
// record is a miss.
func (s *Store) unleasedBlob(d oci.Digest) (*Blob, error) {
	o := blobObject(d)
	f, err := openObject(s.path(o.rel()))
	if errors.Is(err, unix.ENOENT) {
		return nil, missing(o)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return openedBlob(d, f)
}

func openedBlob(d oci.Digest, f *os.File) (*Blob, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: %w", d, err), f.Close())
	}
	return &Blob{digest: d, size: info.Size(), file: f, close: sync.OnceValue(f.Close)}, nil
}

// Digest names the blob.
func (b *Blob) Digest() oci.Digest { return b.digest }

// Size is its length in bytes.
func (b *Blob) Size() int64 { return b.size }

// ReadAt reads as io.ReaderAt says.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.file.ReadAt(p, off) }

// Reader returns a new reader from the blob's begin; any number may read at once.
func (b *Blob) Reader() io.Reader { return io.NewSectionReader(b.file, 0, b.size) }

// Hold is what has to stay open while the blob is used from outside this process.
func (b *Blob) Hold() *os.File { return b.file }

// Close gives the lease back. Closing again does nothing.
func (b *Blob) Close() error { return b.close() }

// PutBlob stores what r holds and returns it as a blob.
func (s *Store) PutBlob(ctx context.Context, r io.Reader) (*Blob, error) {
	f, err := s.newTmp(unix.LOCK_SH, createFile)
	if err != nil {
		return nil, fmt.Errorf("put blob: %w", err)
	}
	w := &roomyWriter{ctx: ctx, store: s, file: f}
	d, _, err := oci.Copy(w, &ctxReader{ctx, r})
	err = errors.Join(err, w.room.Close())
	var b *Blob
	if err == nil {
		b, err = s.publishBlob(ctx, f, d)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("put blob: %w", err), removeFile(f.Name()), f.Close())
	}
	return b, f.Close()
}

// A roomyWriter writes a file within the budget, and tries again once when the
// disk is full and some cache could be removed.
type roomyWriter struct {
	ctx   context.Context
	store *Store
	file  *os.File
	room  *Reservation
}

func (w *roomyWriter) Write(p []byte) (n int, err error) {
	if w.room == nil {
		if w.room, err = w.store.Reserve(w.ctx, -1); err != nil {
			return 0, err
		}
	}
	if err := w.room.Ensure(w.ctx, int64(len(p))); err != nil {
		return 0, err
	}
	err = w.store.RetryFull(w.ctx, func() error {
		if err := failpoint.Hit("store.blob.write"); err != nil {
			return err
		}
		m, err := w.file.Write(p[n:])
		n += m
		return err
	})
	w.room.Wrote(int64(n))
	return n, err
}

// publishTries bounds how often a winner may vanish before it can be leased.
const publishTries = 100

// publishBlob gives f's complete and verified bytes the name d. Losing the
// race to another process is success: same name, same bytes. The winner may be
// collected, or turn out to be damaged, before it can be leased; then the name
// is free again.
func (s *Store) publishBlob(ctx context.Context, f *os.File, d oci.Digest) (*Blob, error) {
	if err := failpoint.Hit("store.blob.chmod"); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o444); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		b, err := s.nameBlob(f, d)
		if !errors.Is(err, os.ErrExist) {
			return b, err
		}
		b, err = s.ownBlob(ctx, d)
		if errdefs.IsNotFound(err) && try < publishTries && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := removeFile(f.Name()); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		return b, nil
	}
}

// nameBlob renames f to its name. The error is os.ErrExist when that is taken.
func (s *Store) nameBlob(f *os.File, d oci.Digest) (*Blob, error) {
	// The lease is on a file that can not write.
	ro, err := openObject(f.Name())
	if err != nil {
		return nil, err
	}
	o := blobObject(d)
	if err = failpoint.Hit("store.blob.lock"); err == nil {
		err = s.lockShortly(context.Background(), ro, unix.LOCK_SH)
	}
	// A reader may hold a download exclusively: then the blob is as one that
	// somebody keeps locked (unleasedBlob).
	busy := errors.Is(err, errBusy)
	if err == nil || busy {
		err = s.publish(f.Name(), o.rel(), false)
	}
	if err == nil {
		err = s.rescue(o)
	}
	if err != nil {
		return nil, errors.Join(err, ro.Close())
	}
	if busy {
		return openedBlob(d, ro)
	}
	l, err := s.addLease(s.path(o.rel()), ro)
	if err != nil {
		return nil, err
	}
	return leasedBlob(d, l), nil
}

// A ctxReader ends with ctx.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
