package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sys/unix"
)

// shareFrom is the size from which sharing blocks beats writing bytes that
// are at hand anyway.
const shareFrom = smallFile

// Build makes the tree of files in dir, an empty directory (or in the image
// dir, see UnpackOptions.Image), and computes the
// canonical tar's digest on the way: it gives the same Applied as WriteTar and
// reads each file once. The rules for files are WriteTar's. Where the file
// system can, large files share their blocks with the source.
func Build(ctx context.Context, dir string, files iter.Seq2[File, error], o UnpackOptions) (Applied, error) {
	p, err := newMaker(dir, o)
	if err != nil {
		return Applied{}, fmt.Errorf("build layer: %w", err)
	}
	tw := newTarWriter(nil)
	b := builder{p: p, o: o, tw: tw, share: true}
	seq := sequence{emit: b.add}
	err = readAhead(ctx, files, seq.add)
	a, err := tw.finish(p.close(err))
	if err != nil {
		return Applied{}, fmt.Errorf("build layer: %w", err)
	}
	a.Devices = p.recorded()
	return a, nil
}

// Create is Build without the digest: it copies file data inside the kernel
// where it can.
func Create(ctx context.Context, dir string, files iter.Seq2[File, error], o UnpackOptions) error {
	p, err := newMaker(dir, o)
	if err != nil {
		return fmt.Errorf("create tree: %w", err)
	}
	b := builder{p: p, o: o, share: true, inKernel: true}
	seq := sequence{emit: b.add}
	if err := p.close(readAhead(ctx, files, seq.add)); err != nil {
		return fmt.Errorf("create tree: %w", err)
	}
	return nil
}

type builder struct {
	p        maker
	o        UnpackOptions
	tw       *tarWriter // nil: no digest wanted
	share    bool       // FICLONE has not been refused yet
	inKernel bool       // nor copy_file_range
	buf      []byte
}

// add makes one entry and writes it to the tar.
func (b *builder) add(ctx context.Context, it *item) error {
	if err := b.one(ctx, it); err != nil {
		return fmt.Errorf("%.200s: %w", it.Path, err)
	}
	return nil
}

func (b *builder) one(ctx context.Context, it *item) error {
	if b.o.Owner != nil {
		it.UID, it.GID = b.o.Owner.UID, b.o.Owner.GID
	}
	done, err := b.p.place(&it.Entry)
	if err != nil {
		return err
	}
	if done {
		if it.Hardlink && b.tw != nil {
			if err := b.p.linked(&it.Entry); err != nil {
				return err
			}
		}
		return b.member(ctx, it, nil)
	}
	to, err := b.p.create(&it.Entry)
	if err != nil {
		return err
	}
	if it.Size == 0 {
		err = b.member(ctx, it, nil)
	} else {
		err = b.content(ctx, to, it)
	}
	return b.p.finish(to, &it.Entry, err)
}

func (b *builder) member(ctx context.Context, it *item, body func(*sink) error) error {
	if b.tw == nil {
		return nil
	}
	return b.tw.member(ctx, it, body)
}

// content fills a new file and, if wanted, the tar.
func (b *builder) content(ctx context.Context, to room, it *item) error {
	if it.rc == nil {
		if err := pwriteAll(to.fd, it.data, to.at); err != nil {
			return err
		}
		return b.member(ctx, it, nil)
	}
	if src, ok := it.rc.(interface{ Fd() uintptr }); ok && it.Size >= shareFrom {
		shared, err := b.clone(ctx, to, int(src.Fd()), it)
		if shared || err != nil {
			return err
		}
	}
	if b.tw == nil {
		return b.write(ctx, to, it, b.scratch, func(int) {})
	}
	return b.member(ctx, it, func(s *sink) error { return b.write(ctx, to, it, s.space, s.advance) })
}

// write copies it.rc by way of space, whose bytes count after advance.
func (b *builder) write(ctx context.Context, to room, it *item, space func() []byte, advance func(int)) error {
	offset := to.at
	var buf []byte
	return copyExactly(ctx, it.rc, it.Size, func() []byte {
		buf = space()
		return buf
	}, func(n int) error {
		if err := pwriteAll(to.fd, buf[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
		advance(n)
		return nil
	})
}

func (b *builder) scratch() []byte {
	if b.buf == nil {
		b.buf = make([]byte, chunkSize)
	}
	return b.buf
}

// clone makes a new file share the blocks of src, or copies them inside the kernel if
// nobody needs to see the bytes. The digest is taken from the clone: the
// source may change meanwhile.
func (b *builder) clone(ctx context.Context, to room, src int, it *item) (bool, error) {
	done := false
	if b.share {
		// All of src, whatever its length is by now. An image's files begin at
		// blocks, and nothing lies behind the last yet.
		err := unix.IoctlFileCloneRange(to.fd, &unix.FileCloneRange{Src_fd: int64(src), Dest_offset: uint64(to.at)})
		done = err == nil
		b.share = done
	}
	if !done && b.tw == nil && b.inKernel {
		var err error
		if done, err = b.copyRange(ctx, to, src, it.Size); err != nil {
			return false, err
		}
	}
	if !done {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(to.fd, &st); err != nil {
		return true, fmt.Errorf("fstat: %w", err)
	}
	if st.Size-to.at != it.Size {
		return true, changed(it.Size, st.Size-to.at)
	}
	return true, b.member(ctx, it, func(s *sink) error {
		return copyExactly(ctx, io.NewSectionReader(rawAt(to.fd), to.at, it.Size), it.Size, s.space, advance(s))
	})
}

func advance(s *sink) func(int) error {
	return func(n int) error {
		s.advance(n)
		return nil
	}
}

// copyRange reports false when the kernel cannot copy between these files.
func (b *builder) copyRange(ctx context.Context, to room, src int, size int64) (bool, error) {
	offset := to.at
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := unix.CopyFileRange(src, nil, to.fd, &offset, int(min(left, 64<<20)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && left == size:
			b.inKernel = false
			return false, nil
		case err != nil:
			return false, fmt.Errorf("copy_file_range: %w", err)
		case n == 0 && left == size: // some file systems say so of what they cannot
			b.inKernel = false
			return false, nil
		case n == 0:
			return false, changed(size, size-left)
		}
		left -= int64(n)
	}
	return true, nil
}
