package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/oci"
	"den/internal/store"
)

// entry is what a name stands for, as the store keeps it in Record.Data.
type entry struct {
	// Target is what the name means in a registry; nil before the first
	// export of what was built here.
	Target *oci.Descriptor `json:"target,omitempty"`
	// Images, one for each platform that is known here.
	Images []*Image `json:"images"`

	name   string
	tagged time.Time
	pulled bool // from the references that all engines share
	base   bool // from a base store, which is not ours to change
}

func decodeEntry(r *store.Ref, pulled bool) (*entry, error) {
	e := &entry{name: r.Name, tagged: r.Created, pulled: pulled, base: r.Base != ""}
	if err := json.Unmarshal(r.Data, e); err != nil {
		return nil, fmt.Errorf("reference %s: %w: %w", r.Name, err, errdefs.ErrDataLoss)
	}
	for _, img := range e.Images {
		if !untagged(r.Name) {
			img.Name = r.Name
		}
		img.Target = e.Target
	}
	return e, nil
}

// ref is the entry as the store keeps it: with all that must outlive it.
func (e *entry) ref() (store.Ref, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return store.Ref{}, fmt.Errorf("reference %s: %w", e.name, err)
	}
	r := store.Ref{Name: e.name, Record: store.Record{Data: data, Created: e.tagged}}
	if r.Created.IsZero() {
		r.Created = time.Now()
	}
	if e.Target != nil {
		r.Blobs = append(r.Blobs, e.Target.Digest)
	}
	for _, img := range e.Images {
		r.Layers = append(r.Layers, img.DiffIDs()...)
		if img.Manifest != nil {
			r.Blobs = append(r.Blobs, img.Manifest.Digest, img.ConfigDigest)
		}
		for _, l := range img.Layers {
			if l.Blob != nil {
				r.Blobs = append(r.Blobs, l.Blob.Digest)
			}
		}
	}
	for _, list := range []*[]oci.Digest{&r.Layers, &r.Blobs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return r, nil
}

// has reports whether one of the entry's images has the configuration.
func (e *entry) has(config oci.Digest) bool {
	return slices.ContainsFunc(e.Images, func(i *Image) bool { return i.ConfigDigest == config })
}

// id is what an untagged entry is called; a list that is still empty has none.
func (e *entry) id() oci.Digest {
	if len(e.Images) == 0 {
		return ""
	}
	return e.Images[0].ConfigDigest
}

// leases keep objects in the store until closed.
type leases []io.Closer

func (l *leases) add(c io.Closer) { *l = append(*l, c) }

func (l *leases) Close() error {
	var errs []error
	for _, c := range *l {
		errs = append(errs, c.Close())
	}
	*l = nil
	return errors.Join(errs...)
}

// hold takes leases on what r names and is here. A layer that is nowhere, and
// of which nobody knows where it could come from, is an error.
func (m *Images) hold(ctx context.Context, e *entry, r store.Ref) (leases, error) {
	var held leases
	blobs := map[oci.Digest]bool{}
	for _, d := range r.Blobs {
		b, err := m.st.Blob(ctx, d)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, held.Close())
		}
		blobs[d] = true
		held.add(b)
	}
	for _, img := range e.Images {
		for _, l := range img.Layers {
			t, err := m.anyTree(ctx, l.DiffID)
			if err == nil {
				held.add(t)
				continue
			}
			if !errdefs.IsNotFound(err) {
				return nil, errors.Join(err, held.Close())
			}
			if l.Blob == nil || l.Repo == "" && !blobs[l.Blob.Digest] {
				return nil, errors.Join(errGone(l), held.Close())
			}
		}
	}
	return held, nil
}

// errGone says that a layer cannot be had any more.
func errGone(l Layer) error {
	return fmt.Errorf("layer %s: it is not in the store and nothing says where it came from, build or pull the image again: %w",
		l.DiffID, errdefs.ErrNotFound)
}

// put writes the entry under leases on all that it names.
func (m *Images) put(ctx context.Context, e *entry) error {
	r, err := e.ref()
	if err != nil {
		return err
	}
	held, err := m.hold(ctx, e, r)
	if err != nil {
		return fmt.Errorf("reference %s: %w", familiar(e.name), err)
	}
	defer held.Close()
	if e.pulled {
		return m.st.SetPulledRef(ctx, r)
	}
	return m.st.SetRef(ctx, r)
}

// locked runs f while no other den process changes what name stands for.
func (m *Images) locked(ctx context.Context, name string, f func() error) error {
	w, err := m.st.Work(ctx, "ref", name, nil)
	if err != nil {
		return err
	}
	defer w.Done()
	return f()
}

// give makes name stand for images. An image that loses its last name by that
// stays, untagged; one that gets a name ends to be untagged.
func (m *Images) give(ctx context.Context, e *entry) error {
	return m.locked(ctx, e.name, func() error {
		if untagged(e.name) {
			if named, err := m.isNamed(ctx, e.id(), e.name); named || err != nil {
				return err
			}
		}
		if err := m.strand(ctx, e.name, e); err != nil {
			return err
		}
		if err := m.put(ctx, e); err != nil {
			return err
		}
		if untagged(e.name) || len(e.Images) == 0 {
			return nil
		}
		if err := m.st.DeleteRef(ctx, string(e.id())); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
}

// strand keeps the image that name stands for under its ID, unless it has
// another name or is what name stands for next.
func (m *Images) strand(ctx context.Context, name string, next *entry) error {
	if untagged(name) {
		return nil
	}
	old, err := m.own(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		return nil
	}
	if err != nil || len(old.Images) == 0 || next != nil && next.has(old.id()) {
		return err
	}
	if named, err := m.isNamed(ctx, old.id(), name); named || err != nil {
		return err
	}
	old.name = string(old.id())
	err = m.put(ctx, old)
	if errdefs.IsNotFound(err) {
		return nil // its layers are gone: nothing is left to keep
	}
	return err
}

// isNamed reports whether the image has a name in this engine besides except.
func (m *Images) isNamed(ctx context.Context, config oci.Digest, except string) (bool, error) {
	all, err := m.owned(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(all, func(e *entry) bool { return e.name != except && e.has(config) }), nil
}

// own returns this engine's entry of a name.
func (m *Images) own(ctx context.Context, name string) (*entry, error) {
	r, err := m.st.Ref(ctx, name)
	if err != nil {
		return nil, err
	}
	return decodeEntry(r, false)
}

// shared returns the entry of a name among the pulled ones.
func (m *Images) shared(ctx context.Context, name string) (*entry, error) {
	r, err := m.st.PulledRef(ctx, name)
	if err != nil {
		return nil, err
	}
	return decodeEntry(r, true)
}

// owned lists this engine's entries.
func (m *Images) owned(ctx context.Context) ([]*entry, error) {
	refs, err := m.st.Refs(ctx)
	if err != nil {
		return nil, err
	}
	return decodeAll(refs, false), nil
}

// entries lists all names: this engine's, and the pulled ones it does not use
// for something else. Sorted by name.
func (m *Images) entries(ctx context.Context) ([]*entry, error) {
	all, err := m.owned(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, e := range all {
		used[e.name] = true
	}
	refs, err := m.st.PulledRefs(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range decodeAll(refs, true) {
		if !used[e.name] {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

// decodeAll drops what cannot be read: by the store's rules it is absent.
func decodeAll(refs []store.Ref, pulled bool) []*entry {
	var all []*entry
	for i := range refs {
		if e, err := decodeEntry(&refs[i], pulled); err == nil && len(e.Images) > 0 {
			all = append(all, e)
		}
	}
	return all
}
