package layer

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// WriteTar writes the canonical tar of files to w and says what it is; with
// io.Discard it computes the diffID. The files come in the order of
// ComparePaths, each path once, a hard link after the file that it names;
// anything else is errdefs.ErrInvalidArgument. Missing parents are added as
// Unpack would make them, the root itself has no entry, sockets are left out.
// A file that is shorter or longer than its entry says is an error.
func WriteTar(ctx context.Context, w io.Writer, files iter.Seq2[File, error]) (Applied, error) {
	tw := newTarWriter(w)
	seq := sequence{emit: func(ctx context.Context, it *item) error { return tw.member(ctx, it, nil) }}
	err := readAhead(ctx, files, seq.add)
	a, err := tw.finish(err)
	if err != nil {
		return Applied{}, fmt.Errorf("write layer tar: %w", err)
	}
	return a, nil
}

// tarWriter encodes members into a sink.
type tarWriter struct {
	sink    *sink
	scratch []byte
	applied Applied
}

func newTarWriter(w io.Writer) *tarWriter { return &tarWriter{sink: newSink(w)} }

// finish ends the archive; err is why it ends early.
func (w *tarWriter) finish(err error) (Applied, error) {
	if err == nil {
		_, _ = w.sink.Write(zeros[:])
	}
	d, size, serr := w.sink.finish()
	if err == nil {
		err = serr
	}
	if err != nil {
		return Applied{}, err
	}
	w.applied.DiffID, w.applied.SizeBytes = d, size
	return w.applied, nil
}

// member writes one entry and, for a directory that is opaque, its marker.
// body, if not nil, writes the content instead of it.data and it.rc.
func (w *tarWriter) member(ctx context.Context, it *item, body func(*sink) error) error {
	if it.Path == "." { // the root is never an entry, for Docker and BuildKit neither
		return w.marker(it)
	}
	h, err := headerOf(&it.Entry)
	if err != nil {
		return fmt.Errorf("%s: %w", it.Path, err)
	}
	w.header(&h)
	if h.typeflag == tarRegular && h.size > 0 {
		if body == nil {
			body = func(s *sink) error { return it.copyTo(ctx, s) }
		}
		if err := body(w.sink); err != nil {
			return fmt.Errorf("%s: %w", it.Path, err)
		}
		_, _ = w.sink.Write(pad(nil, h.size))
		w.applied.TreeBytes += h.size
	}
	return w.marker(it)
}

func (w *tarWriter) marker(it *item) error {
	if it.Opaque {
		dir := it.Path
		if dir == "." {
			dir = ""
		}
		w.header(&header{name: joinPath(dir, opaqueName), typeflag: tarRegular})
	}
	return nil
}

func (w *tarWriter) header(h *header) {
	w.scratch = h.appendTo(w.scratch[:0])
	_, _ = w.sink.Write(w.scratch)
	w.applied.Entries++
}

// copyTo puts an item's content into s, exactly it.Size bytes.
func (it *item) copyTo(ctx context.Context, s *sink) error {
	if it.rc == nil {
		_, err := s.Write(it.data)
		return err
	}
	return copyExactly(ctx, it.rc, it.Size, s.space, func(n int) error {
		s.advance(n)
		return nil
	})
}

// copyExactly reads size bytes of r into what space returns and calls done for
// each piece. More or fewer bytes are an error.
func copyExactly(ctx context.Context, r io.Reader, size int64, space func() []byte, done func(n int) error) error {
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf := space()
		n, err := r.Read(buf[:min(int64(len(buf)), left)])
		if n > 0 {
			left -= int64(n)
			if err := done(n); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && left > 0, err == nil && n == 0:
			return changed(size, size-left)
		case err != nil && err != io.EOF:
			return fmt.Errorf("read: %w", err)
		}
	}
	var more [1]byte
	if n, _ := r.Read(more[:]); n > 0 {
		return changed(size, size+1)
	}
	return nil
}

// sequence checks the order of entries, normalises them and adds what is
// missing, so that whoever reads the result sees one canonical form.
type sequence struct {
	emit func(context.Context, *item) error

	started bool
	last    string // path of the last entry
	lastDir bool
	dirs    []openDir         // the directories that lead to it
	links   map[string]string // hard link -> the first name
}

// openDir is a directory whose content is being passed on. hides says that
// nothing of the layers below is seen in it.
type openDir struct {
	path  string
	hides bool
}

func (s *sequence) add(ctx context.Context, it *item) error {
	if err := s.normalise(&it.Entry); err != nil {
		return fmt.Errorf("%.200s: %w", it.Path, err)
	}
	if it.Mode&unix.S_IFMT == unix.S_IFSOCK && !it.Whiteout && !it.Hardlink {
		return nil // no tar can hold one; Docker and BuildKit leave it out
	}
	if s.started && ComparePaths(s.last, it.Path) >= 0 {
		return invalid("%.200s comes after %.200s", it.Path, s.last)
	}
	if err := s.enter(ctx, it.Path); err != nil {
		return err
	}
	if n := len(s.dirs); it.Whiteout && n > 0 && s.dirs[n-1].hides {
		return nil // removes nothing, but the kernel would list it
	}
	if err := s.emit(ctx, it); err != nil {
		return err
	}
	s.reached(it.Path, it.Path == "." || (it.Mode&unix.S_IFMT == unix.S_IFDIR && !it.Whiteout), it.Opaque)
	return nil
}

func (s *sequence) reached(path string, isDir, opaque bool) {
	s.started, s.last, s.lastDir = true, path, isDir
	if isDir {
		n := len(s.dirs)
		s.dirs = append(s.dirs, openDir{path, opaque || (n > 0 && s.dirs[n-1].hides)})
	}
}

// enter makes sure that path's parents came before it.
func (s *sequence) enter(ctx context.Context, path string) error {
	for len(s.dirs) > 0 && !below(path, s.dirs[len(s.dirs)-1].path) {
		s.dirs = s.dirs[:len(s.dirs)-1]
	}
	if s.started && !s.lastDir && below(path, s.last) {
		return invalid("%.200s: its parent %.200s is not a directory", path, s.last)
	}
	have := 0
	if n := len(s.dirs); n > 0 && s.dirs[n-1].path != "." {
		have = len(s.dirs[n-1].path) + 1
	}
	for {
		i := strings.IndexByte(path[have:], '/')
		if i < 0 {
			return nil
		}
		parent := path[:have+i]
		dir := item{File: File{Entry: impliedDir(parent)}}
		if err := s.emit(ctx, &dir); err != nil {
			return err
		}
		s.reached(parent, true, false)
		have += i + 1
	}
}

// below reports whether path lies in dir.
func below(path, dir string) bool {
	return dir == "." || (len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir)
}

// impliedDir is a parent that no entry names: 0755, root, 1970.
func impliedDir(path string) oci.Entry {
	return oci.Entry{Path: path, Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(0, 0)}
}

// normalise checks one entry and drops what a canonical tar does not keep.
func (s *sequence) normalise(e *oci.Entry) error {
	p, err := cleanPath(e.Path)
	if err != nil {
		return err
	}
	e.Path = p
	if strings.HasPrefix(baseOf(p), whiteoutPrefix) {
		return invalid("names that begin with %s mean removals in a layer", whiteoutPrefix)
	}
	if p == "." && (e.Whiteout || e.Hardlink || (e.Mode&unix.S_IFMT != unix.S_IFDIR && e.Mode != 0)) {
		return invalid("the root can only be a directory")
	}
	if e.UID == math.MaxUint32 || e.GID == math.MaxUint32 { // chown(2) takes it for "leave it"
		return invalid("owner %d:%d is out of range", e.UID, e.GID)
	}
	kind := e.Mode & unix.S_IFMT
	switch {
	case e.Whiteout:
		*e = oci.Entry{Path: p, Whiteout: true}
		return nil
	case e.Hardlink:
		return s.normaliseLink(e)
	case kind == unix.S_IFLNK:
		e.Mode = unix.S_IFLNK | 0o777
		if e.Link == "" || len(e.Link) > maxTarget || strings.IndexByte(e.Link, 0) >= 0 {
			return invalid("target of symbolic link is %d bytes long or holds a zero byte", len(e.Link))
		}
	case kind == unix.S_IFCHR && e.Rdev == 0:
		return invalid("device 0:0 means a whiteout in a layer")
	case kind == unix.S_IFREG && e.Size < 0:
		return invalid("size %d", e.Size)
	}
	if e.Opaque && kind == 0 && p != "." {
		e.Mode = impliedDir(p).Mode
	}
	e.Opaque = e.Opaque && (p == "." || e.Mode&unix.S_IFMT == unix.S_IFDIR)
	e.ModTime = wholeSeconds(e.ModTime)
	return normaliseXattrs(e)
}

// normaliseLink makes a hard link name the first of its file's names.
func (s *sequence) normaliseLink(e *oci.Entry) error {
	target, err := cleanPath(e.Link)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if first, ok := s.links[target]; ok {
		target = first
	}
	if target == "." || ComparePaths(target, e.Path) >= 0 {
		return invalid("hard link to %.200s, which does not come before it", target)
	}
	if s.links == nil {
		s.links = map[string]string{}
	}
	s.links[e.Path] = target
	e.Link, e.Size, e.Xattrs, e.Opaque = target, 0, nil, false
	e.ModTime = wholeSeconds(e.ModTime)
	return nil
}

func normaliseXattrs(e *oci.Entry) error {
	kept := 0
	for name, value := range e.Xattrs {
		switch {
		case !sys.KeepXattr(name):
			continue
		case strings.ContainsAny(name, "=\n"):
			return invalid("extended attribute %q cannot be written to a tar", name)
		case len(value) > 64<<10:
			return invalid("extended attribute %q is %d bytes long", name, len(value))
		}
		kept++
	}
	if kept == len(e.Xattrs) {
		return nil
	}
	all := e.Xattrs
	e.Xattrs = make(map[string][]byte, kept)
	for name, value := range all {
		if sys.KeepXattr(name) {
			e.Xattrs[name] = value
		}
	}
	return nil
}
