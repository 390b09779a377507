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
	"golang.org/x/sys/unix"

	"den/internal/erofs"
	"den/internal/failpoint"
	"den/internal/oci"
	"den/internal/sys"
)

// A Draft is a tree in the making, private to this process.
type Draft struct {
	store *Store
	dir   *os.File // locked since birth
	path  string
	mu    sync.Mutex
	done  bool // published or removed
	work  error
	once  sync.Once // makes the work directory
	room  sync.Once // makes the plain directory
}

// NewDraft makes an empty draft on the store's file system.
func (s *Store) NewDraft(ctx context.Context) (*Draft, error) {
	dir, err := s.newTmp(unix.LOCK_SH, createDir)
	if err != nil {
		return nil, fmt.Errorf("new draft: %w", err)
	}
	d := &Draft{store: s, dir: dir, path: dir.Name()}
	if err = failpoint.Hit("store.draft.mkdir"); err == nil && !s.ImageForm() {
		err = makeRoot(d.FS())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new draft: %w", err), d.Close())
	}
	return d, nil
}

// makeRoot makes a directory that becomes the root of a container.
func makeRoot(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) // whatever the umask
}

// FS is the path of the layer's tree in the making: an empty directory, or in a
// store of images that of a file which does not exist yet.
func (d *Draft) FS() string { return filepath.Join(d.path, treeName(d.store.class)) }

// Dir is an empty directory for who needs the room and no layer. It is FS where
// that is a directory; a layer that is published never holds it.
func (d *Draft) Dir() string {
	path := filepath.Join(d.path, fsDir)
	if d.store.ImageForm() {
		d.room.Do(func() { d.work = errors.Join(d.work, makeRoot(path)) })
	}
	return path
}

// Watch keeps room for who writes the draft's tree, as Store.Watch does.
func (d *Draft) Watch(ctx context.Context) (*Watch, error) {
	return d.store.Watch(ctx, d.path)
}

// Work is an empty directory beside it, an overlay's work directory. The first
// call makes it, because most drafts need none; Publish reports if it could not.
func (d *Draft) Work() string {
	path := filepath.Join(d.path, workDir)
	d.once.Do(func() { d.work = errors.Join(d.work, os.Mkdir(path, 0o700)) })
	return path
}

// Publish makes the tree the layer m.DiffID and returns it. When another
// process was faster, its tree is returned and this one removed. The tree must
// not change any more, and nothing may have it mounted for writing.
func (d *Draft) Publish(ctx context.Context, m LayerMeta) (*Layer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return nil, fmt.Errorf("publish layer %s: draft is done: %w", m.DiffID, errdefs.ErrFailedPrecondition)
	}
	for _, id := range append([]oci.Digest{m.DiffID}, m.Over...) {
		if err := oci.CheckDigest(id); err != nil {
			return nil, fmt.Errorf("publish layer: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	// A name may be given only to what is complete, its closure included.
	over, err := d.store.acquireAll(ctx, d.store.class, m.Over)
	if err != nil {
		return nil, fmt.Errorf("publish layer %s: %w", m.DiffID, err)
	}
	l, err := d.publish(ctx, m, over)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("publish layer %s: %w", m.DiffID, err), releaseAll(over))
	}
	return l, nil
}

// publish consumes the leases over unless it fails.
func (d *Draft) publish(ctx context.Context, m LayerMeta, over []*lease) (*Layer, error) {
	if err := d.measure(&m); err != nil {
		return nil, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("store.draft.meta"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(d.path, metaFile), data, 0o644); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("store.draft.clean"); err != nil {
		return nil, err
	}
	if err := d.clean(); err != nil {
		return nil, err
	}
	s := d.store
	o := layerObject(s.class, s.LayerID(m.DiffID))
	for {
		err := s.publish(d.path, o.rel(), false)
		if err == nil {
			return d.adopt(o, m, over)
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		winner, err := s.layer(ctx, s.class, m.DiffID)
		switch {
		case err == nil:
			if err := errors.Join(releaseAll(over), d.remove()); err != nil {
				s.notice(fmt.Sprintf("store %s: %v", s.root, err)) // the collector finishes it
			}
			return winner, nil
		case errors.Is(err, errBusy):
			return d.private(m, over), nil
		case !errdefs.IsNotFound(err):
			return nil, err
		}
		// The winner was collected, or damaged, at this very moment.
	}
}

// measure counts what an image takes, which only the file system knows: holes
// take nothing. The image has to be there and complete.
func (d *Draft) measure(m *LayerMeta) error {
	if m.DiskBytes = 0; !d.store.ImageForm() {
		return nil
	}
	r, err := erofs.Open(d.FS())
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	for _, suffix := range []string{"", erofs.OpaqueSuffix, erofs.AttrsSuffix} {
		var st unix.Stat_t
		err := unix.Lstat(d.FS()+suffix, &st)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "lstat", Path: d.FS() + suffix, Err: err}
		}
		if err == nil {
			m.DiskBytes += st.Blocks * 512
		}
	}
	return nil
}

// clean removes what belongs to drafts only.
func (d *Draft) clean() error {
	err := errors.Join(d.work, sys.RemoveTree(filepath.Join(d.path, workDir)))
	if d.store.ImageForm() {
		err = errors.Join(err, sys.RemoveTree(filepath.Join(d.path, fsDir)))
	}
	return err
}

// adopt turns the draft, which was given its name, into a leased layer.
func (d *Draft) adopt(o object, m LayerMeta, over []*lease) (*Layer, error) {
	d.done = true
	if err := d.store.rescue(o); err != nil {
		return nil, errors.Join(err, d.dir.Close())
	}
	own, err := d.store.addLease(d.store.path(o.rel()), d.dir)
	if err != nil {
		return nil, err
	}
	return d.store.newLayer(d.store.class, m, append([]*lease{own}, over...)), nil
}

// private returns the draft's tree as a layer that only this process sees,
// because somebody keeps the published one locked.
func (d *Draft) private(m LayerMeta, over []*lease) *Layer {
	d.done = true
	l := d.store.newLayer(d.store.class, m, over)
	l.dirs = append([]string{d.FS()}, l.dirs...)
	l.hold = append([]*os.File{d.dir}, l.hold...)
	l.close = sync.OnceValue(func() error { return errors.Join(releaseAll(over), d.remove()) })
	return l
}

// Close removes the draft unless it was published. Closing again does nothing.
func (d *Draft) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return nil
	}
	return d.remove()
}

func (d *Draft) remove() error {
	d.done = true
	if err := errors.Join(sys.RemoveTree(d.path), d.dir.Close()); err != nil {
		return fmt.Errorf("remove draft: %w", err)
	}
	return nil
}
