package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// LayerMeta is what the store knows of a layer besides its tree.
type LayerMeta struct {
	// Format is not empty for layers of a later den, whose id comes about in
	// another way: they are left alone.
	Format string     `json:"format,omitempty"`
	DiffID oci.Digest `json:"diffID"`
	// SizeBytes is the length of the layer's tar.
	SizeBytes int64 `json:"sizeBytes"`
	// TreeBytes is what the tree takes on disk, where that is not about
	// SizeBytes: a layer over others holds only what differs.
	TreeBytes int64 `json:"treeBytes,omitempty"`
	Entries   int   `json:"entries,omitempty"`
	// DiskBytes is what a tree in image form takes on disk. Publish counts it.
	DiskBytes int64 `json:"diskBytes,omitempty"`
	// Over are all the trees below that belong to this layer, top first: the
	// layer is a delta and shows only stacked on them.
	Over  []oci.Digest    `json:"over,omitempty"`
	Extra json.RawMessage `json:"extra,omitempty"`
}

// blockBytes is what an entry takes at most beside its content: the rest of
// its last block, or a directory's block.
const blockBytes = 4096

// diskBytes is about what the layer takes on disk, and not less where its
// entries are known.
func (m LayerMeta) diskBytes() int64 {
	const wrapper = 3 * blockBytes // two directories and the metadata
	switch {
	case m.DiskBytes > 0:
		return m.DiskBytes + wrapper
	case len(m.Over) > 0: // Entries are the whole layer's
		return m.TreeBytes + wrapper
	case m.Entries > 0:
		return m.TreeBytes + int64(m.Entries)*blockBytes + wrapper
	case m.TreeBytes > 0:
		return m.TreeBytes
	}
	return m.SizeBytes
}

// A layer's wrapper directory holds these. The lock is on the wrapper, whose
// mode is ours; fs has the mode that the image wants.
const (
	fsDir     = "fs"
	imageFile = "image.erofs" // instead of fs, in image form; its sidecars beside it
	workDir   = "work"        // of drafts only
	metaFile  = "meta.json"
)

// treeName is where the tree is in the wrapper of a layer of a class.
func treeName(class string) string {
	if class == imageClass {
		return imageFile
	}
	return fsDir
}

// A Layer is an unpacked tree, in overlay or image form, leased until Close.
type Layer struct {
	meta  LayerMeta
	dirs  []string
	hold  []*os.File
	close func() error
}

// Layer returns the tree of diffID for this process's ownership class, from
// this store or a base; the error is of class errdefs.ErrNotFound when there is
// none that can be used.
func (s *Store) Layer(ctx context.Context, diffID oci.Digest) (*Layer, error) {
	return s.layerOf(ctx, s.class, diffID)
}

// KinLayer is Layer in the form that this process does not use: what a den on another rung
// made of diffID. It is there to be read; that nothing in it is hidden from this process
// only its digest says.
func (s *Store) KinLayer(ctx context.Context, diffID oci.Digest) (*Layer, error) {
	class, err := classFor(!s.ImageForm())
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return s.layerOf(ctx, class, diffID)
}

func (s *Store) layerOf(ctx context.Context, class string, diffID oci.Digest) (*Layer, error) {
	return orBase(ctx, s, func(s *Store) (*Layer, error) { return s.ownLayer(ctx, class, diffID) })
}

func (s *Store) ownLayer(ctx context.Context, class string, diffID oci.Digest) (*Layer, error) {
	l, err := s.layer(ctx, class, diffID)
	if errors.Is(err, errBusy) {
		// Unpacking it once more costs disk and nothing else.
		return nil, fmt.Errorf("layer %s: %w: %w", diffID, err, errdefs.ErrNotFound)
	}
	return l, err
}

// layer is Layer that reports errBusy.
func (s *Store) layer(ctx context.Context, class string, diffID oci.Digest) (*Layer, error) {
	if err := oci.CheckDigest(diffID); err != nil {
		return nil, fmt.Errorf("layer: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	o := layerObject(class, layerID(class, diffID))
	own, err := s.acquire(ctx, o)
	if err != nil {
		return nil, err
	}
	meta, err := readMeta(own.path)
	if err == nil && meta.DiffID == diffID {
		var l *Layer
		if l, err = s.openLayer(ctx, class, meta, own); err == nil {
			return l, nil
		}
	}
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, errBadMeta) {
		return nil, errors.Join(err, own.release())
	}
	// Damaged, or one of its trees is gone: as good as not there.
	if err := own.release(); err != nil {
		return nil, err
	}
	if _, err := s.discard(s.path(o.rel())); err != nil {
		return nil, fmt.Errorf("discard damaged %s: %w", o, err)
	}
	return nil, missing(o)
}

// openLayer makes the handle of the leased own and the trees below it.
func (s *Store) openLayer(ctx context.Context, class string, meta LayerMeta, own *lease) (*Layer, error) {
	over, err := s.acquireAll(ctx, class, meta.Over)
	if err != nil {
		return nil, err
	}
	return s.newLayer(class, meta, append([]*lease{own}, over...)), nil
}

// acquireAll leases the own trees of layers, here or in a base.
func (s *Store) acquireAll(ctx context.Context, class string, diffIDs []oci.Digest) ([]*lease, error) {
	leases := make([]*lease, 0, len(diffIDs))
	for _, d := range diffIDs {
		o := layerObject(class, layerID(class, d))
		l, err := orBase(ctx, s, func(s *Store) (*lease, error) { return s.acquire(ctx, o) })
		if err != nil {
			return nil, errors.Join(err, releaseAll(leases))
		}
		leases = append(leases, l)
	}
	return leases, nil
}

func releaseAll(leases []*lease) error {
	var errs []error
	for _, l := range leases {
		errs = append(errs, l.release())
	}
	return errors.Join(errs...)
}

func (s *Store) newLayer(class string, meta LayerMeta, leases []*lease) *Layer {
	l := &Layer{meta: meta, close: sync.OnceValue(func() error { return releaseAll(leases) })}
	for _, lease := range leases {
		l.dirs = append(l.dirs, filepath.Join(lease.path, treeName(class)))
		l.hold = append(l.hold, lease.file)
	}
	return l
}

// DiffID names the layer.
func (l *Layer) DiffID() oci.Digest { return l.meta.DiffID }

// Meta is what was published with the layer.
func (l *Layer) Meta() LayerMeta { return l.meta }

// Dirs are the paths of the layer's trees, top first: lower directories of an
// overlay, or images.
func (l *Layer) Dirs() []string { return l.dirs }

// Hold are the leases on the trees. They belong to the layer: whoever keeps a
// mount alive beyond Close keeps copies of them open.
func (l *Layer) Hold() []*os.File { return l.hold }

// Close gives the leases back. Closing again does nothing.
func (l *Layer) Close() error { return l.close() }

var errBadMeta = errors.New("malformed")

// ofLaterFormat reports whether o is a layer of a format that this den does not know.
func (s *Store) ofLaterFormat(o object) bool {
	if o.kind != kindLayer {
		return false
	}
	var m LayerMeta
	data, err := readBounded(s.path(o.rel(), metaFile))
	return err == nil && json.Unmarshal(data, &m) == nil && m.Format != ""
}

func readMeta(wrapper string) (LayerMeta, error) {
	var m LayerMeta
	data, err := readBounded(filepath.Join(wrapper, metaFile))
	if errors.Is(err, os.ErrNotExist) {
		return m, fmt.Errorf("%s: %w", metaFile, errBadMeta)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w: %w", metaFile, err, errBadMeta)
	}
	for _, d := range append([]oci.Digest{m.DiffID}, m.Over...) {
		if err := oci.CheckDigest(d); err != nil {
			return m, fmt.Errorf("%s: %w: %w", metaFile, err, errBadMeta)
		}
	}
	return m, nil
}
