package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/erofs"
	"den/internal/oci"
	"den/internal/sys"
)

// A Source is a store that somebody wrote who is not trusted, opened to take
// over what can be verified. Nothing in it is believed: names are opened
// beneath its directory and through no symbolic link, documents are bounded,
// and no lock of it is waited for. What its writers change meanwhile makes a
// verification fail, at worst; best nobody writes to it.
type Source struct {
	root    string
	dir     *os.File
	classes []string // whose trees are of use, the best first
}

// OpenSource opens the store in root, for trees of this process's ownership class
// and for images.
func OpenSource(root string) (_ *Source, err error) {
	src := &Source{root: root}
	class, err := ownershipClass()
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	src.classes = []string{class, imageClass}
	if src.dir, err = os.Open(root); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	var f format
	err = src.readJSON(FormatFile, &f)
	if err == nil && (f.Format != formatVersion || len(f.Incompat) > 0) {
		err = fmt.Errorf("it has format %d %.80q, made by a newer den: %w", f.Format, f.Incompat, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", root, err), src.dir.Close())
	}
	return src, nil
}

// Close ends the reading.
func (src *Source) Close() error { return src.dir.Close() }

// openDir opens a folder.
func (src *Source) openDir(rel string) (*os.File, error) {
	fd, err := sys.OpenDirBeneath(int(src.dir.Fd()), rel)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path.Join(src.root, rel), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(src.root, rel)), nil
}

// open opens a regular file.
func (src *Source) open(rel string) (*os.File, error) {
	dir, err := src.openDir(path.Dir(rel))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Seen before it is opened: to open a device may do things. It is looked at
	// again after, for who could exchange it meanwhile could make no device.
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), path.Base(rel), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	fd := -1
	if err == nil {
		fd, err = sys.OpenFileAt(int(dir.Fd()), path.Base(rel))
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path.Join(src.root, rel), Err: err}
	}
	f := os.NewFile(uintptr(fd), path.Join(src.root, rel))
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: %w", f.Name(), errdefs.ErrDataLoss)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (src *Source) readJSON(rel string, v any) error {
	f, err := src.open(rel)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := readAll(f)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// names lists a folder; one that cannot be read is empty.
func (src *Source) names(rel string) []string {
	dir, err := src.openDir(rel)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	return names
}

// Records calls fn with the key and the record of everything that claims to be
// of one of the scopes and can be read. The claim is all there is: a writer of
// the store may have made it up.
func (src *Source) Records(ctx context.Context, scopes []string, fn func(key oci.Digest, r Record) error) error {
	trusted := map[string]bool{}
	for _, s := range scopes {
		trusted[s] = true
	}
	for _, shard := range src.names("cache") {
		for _, name := range src.names(path.Join("cache", shard)) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			hex, ok := strings.CutSuffix(name, ".json")
			if !ok || !isHex(hex) {
				continue
			}
			var r Record
			if src.readJSON(path.Join("cache", shard, name), &r) != nil || r.check() != nil || !trusted[r.Scope] {
				continue
			}
			if err := fn(oci.Digest("sha256:"+hex), r); err != nil {
				return err
			}
		}
	}
	return nil
}

// Blobs calls fn with the name of every blob.
func (src *Source) Blobs(ctx context.Context, fn func(d oci.Digest) error) error {
	for _, hex := range src.names("blobs/sha256") {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !isHex(hex) {
			continue
		}
		if err := fn(oci.Digest("sha256:" + hex)); err != nil {
			return err
		}
	}
	return nil
}

// Derived returns the memo called name, whatever it claims.
func (src *Source) Derived(name string) ([]byte, error) {
	h := hexSum(name)
	f, err := src.open(path.Join("derived", h[:2], h))
	if err != nil {
		return nil, notFoundIfBad(err)
	}
	defer f.Close()
	data, err := readAll(f)
	if err != nil {
		return nil, err
	}
	return data[min(4, len(data)):], nil
}

// Take copies the blob d into s and verifies it on the way, unless s has it:
// bytes that are not d's are an *oci.DigestError and leave nothing. The error is
// of class errdefs.ErrNotFound when the source has none.
func (src *Source) Take(ctx context.Context, s *Store, d oci.Digest) (*Blob, error) {
	if err := oci.CheckDigest(d); err != nil {
		return nil, fmt.Errorf("take blob: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	b, err := s.Blob(ctx, d)
	if !errdefs.IsNotFound(err) {
		return b, err
	}
	f, err := src.open(blobObject(d).rel())
	if err != nil {
		return nil, notFoundIfBad(err)
	}
	defer f.Close()
	return s.Ingest(ctx, Ingest{Digest: d, SizeBytes: -1, Fetch: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		_, err := f.Seek(offset, io.SeekStart)
		return io.NopCloser(f), err
	}})
}

// A SourceTree is a layer's tree in a source, which may hold anything.
type SourceTree struct {
	// Dir is a path to the tree, a directory or an image; Over what its metadata
	// says lies below.
	Dir  string
	Over []oci.Digest
	fs   *os.File
}

// Close ends the reading.
func (t *SourceTree) Close() error { return t.fs.Close() }

// Tree opens the source's tree of diffID; the error is of class
// errdefs.ErrNotFound when it has none of this process's class, and no image.
func (src *Source) Tree(diffID oci.Digest) (*SourceTree, error) {
	if err := oci.CheckDigest(diffID); err != nil {
		return nil, fmt.Errorf("tree: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var errs []error
	for _, class := range src.classes {
		t, err := src.tree(class, diffID)
		if err == nil || !errdefs.IsNotFound(err) {
			return t, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (src *Source) tree(class string, diffID oci.Digest) (*SourceTree, error) {
	rel := layerObject(class, layerID(class, diffID)).rel()
	var m LayerMeta
	err := src.readJSON(path.Join(rel, metaFile), &m)
	for _, d := range m.Over {
		err = errors.Join(err, oci.CheckDigest(d))
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w: %w", diffID, err, errdefs.ErrNotFound)
	}
	inner := "." // of the open directory
	if class == imageClass {
		inner = imageFile
		err = src.checkImage(rel)
	} else {
		rel = path.Join(rel, fsDir)
	}
	var dir *os.File
	if err == nil {
		dir, err = src.openDir(rel)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, notFoundIfBad(err))
	}
	// The name leads to the opened directory, whatever becomes of its path.
	return &SourceTree{Dir: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), inner), Over: m.Over, fs: dir}, nil
}

// checkImage makes sure that an image and its attributes are regular files,
// before their reader opens them.
func (src *Source) checkImage(rel string) error {
	for _, name := range []string{imageFile, imageFile + erofs.AttrsSuffix} {
		f, err := src.open(path.Join(rel, name))
		if errors.Is(err, os.ErrNotExist) && name != imageFile {
			continue
		}
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
