package layer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// BuildTar is Build of the entries of the layer tar r, which have to come in
// canonical order: the tree and its canonical tar's digest come of one reading.
// r is as hostile as Unpack's; what no walk of a tree would give is refused
// (errdefs.ErrInvalidArgument), so that a walk of this tree gives the same
// Applied. Of o, Archive, Owner and MaxBytes do not count. r is read to its end.
func BuildTar(ctx context.Context, dir string, r io.Reader, o UnpackOptions) (Applied, error) {
	tw := newTarWriter(nil)
	p, err := placeTar(ctx, dir, r, o, tw)
	a, err := tw.finish(err)
	if err != nil {
		return Applied{}, fmt.Errorf("build layer: %w", err)
	}
	a.Devices = p.recorded()
	return a, nil
}

// CreateTar is BuildTar without the digest: nothing is hashed.
func CreateTar(ctx context.Context, dir string, r io.Reader, o UnpackOptions) error {
	if _, err := placeTar(ctx, dir, r, o, nil); err != nil {
		return fmt.Errorf("create tree: %w", err)
	}
	return nil
}

func placeTar(ctx context.Context, dir string, r io.Reader, o UnpackOptions, tw *tarWriter) (maker, error) {
	o.Archive, o.Owner = false, nil
	p, err := newMaker(dir, o)
	if err != nil {
		return nil, err
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	buffered := bufio.NewReaderSize(r, smallFile)
	seq := sequence{emit: (&builder{p: p, o: o, tw: tw}).add}
	in := tarItems{r: NewReader(buffered), most: o.MaxEntries, seq: &seq}
	err = in.run(ctx)
	if err == nil {
		_, err = io.Copy(io.Discard, buffered) // or the writer of a pipe would not come to its end
	}
	return p, p.close(err)
}

// tarItems are the entries of a tar on the way to a sequence.
type tarItems struct {
	r    *Reader
	most int
	seq  *sequence

	dir   *oci.Entry // waits for its mark of an opaque directory, which comes right behind it
	links map[string]bool
}

func (t *tarItems) run(ctx context.Context) error {
	for n := 0; ; n++ {
		e, err := t.r.Next()
		if err == nil {
			err = ctx.Err()
		}
		if err == io.EOF {
			return errors.Join(t.flush(ctx), ctx.Err())
		}
		if err != nil {
			return err
		}
		if n == t.most {
			return invalid("more than %d entries", t.most)
		}
		if err := t.one(ctx, e); err != nil {
			return err
		}
	}
}

func (t *tarItems) one(ctx context.Context, e *oci.Entry) error {
	kind := e.Mode & unix.S_IFMT
	if t.dir != nil && e.Opaque && kind == 0 && e.Path == t.dir.Path {
		t.dir.Opaque = true
		return t.flush(ctx)
	}
	if err := t.flush(ctx); err != nil {
		return err
	}
	if kind == unix.S_IFDIR {
		t.dir = e
		return nil
	}
	if err := t.check(e); err != nil {
		return fmt.Errorf("%.200s: %w", e.Path, err)
	}
	it := item{File: File{Entry: *e}}
	if e.Size > 0 {
		it.rc = io.NopCloser(t.r)
	}
	return t.seq.add(ctx, &it)
}

func (t *tarItems) flush(ctx context.Context) error {
	if t.dir == nil {
		return nil
	}
	it := item{File: File{Entry: *t.dir}}
	t.dir = nil
	return t.seq.add(ctx, &it)
}

// check refuses or drops what a tar may say and a tree cannot.
func (t *tarItems) check(e *oci.Entry) error {
	if e.Hardlink {
		return t.checkLink(e)
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if t.r.sparse { // costs its sender nothing, and its receiver all of it
			return invalid("sparse files do not come in a layer of den's own")
		}
		return nil
	case unix.S_IFLNK:
		t.isLink(e.Path)
	}
	// The kernel allows user.* only on files and directories.
	maps.DeleteFunc(e.Xattrs, func(name string, _ []byte) bool { return name != sys.CapabilityAttr })
	return nil
}

// checkLink refuses the name of a file by way of a symbolic link, which is not
// the name that a walk would find.
func (t *tarItems) checkLink(e *oci.Entry) error {
	for i, c := range e.Link {
		if c == '/' && t.links[e.Link[:i]] {
			return invalid("hard link to %.200s, by way of a symbolic link", e.Link)
		}
	}
	if t.links[e.Link] {
		t.isLink(e.Path)
	}
	return nil
}

func (t *tarItems) isLink(path string) {
	if t.links == nil {
		t.links = map[string]bool{}
	}
	t.links[strings.Clone(path)] = true
}
