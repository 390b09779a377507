package image

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/oci"
	"den/internal/progress"
	"den/internal/registry"
	"den/internal/store"
)

// PushOptions refine Push.
type PushOptions struct {
	// Platform pushes only the image of one platform; nil pushes all that
	// are here.
	Platform *oci.Platform
	// Format of what was never exported.
	Format Format
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// Push uploads the image that name stands for here to name's registry and
// returns the descriptor of its manifest or index there. What was pulled goes
// as it came; what was built gets its blobs now, once.
func (m *Images) Push(ctx context.Context, name string, o PushOptions) (oci.Descriptor, error) {
	ref, err := parseTag(name)
	if err != nil {
		return oci.Descriptor{}, err
	}
	e, err := m.byName(ctx, ref)
	if errdefs.IsNotFound(err) {
		return oci.Descriptor{}, fmt.Errorf("push: an image does not exist locally with the tag: %s: %w", ref.FamiliarName(), errdefs.ErrNotFound)
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	images := e.Images
	if o.Platform != nil {
		img, err := e.choose(o.Platform, m.o.Platform)
		if err != nil {
			return oci.Descriptor{}, fmt.Errorf("push: %w", err)
		}
		images = []*Image{img}
	}
	f := o.Format
	f.Sink, f.Vertex = o.Sink, o.Vertex
	b, err := m.Blobs(ctx, images, f)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer b.Close()
	if err := m.PushBlobs(ctx, b, []string{ref.String()}, o); err != nil {
		return oci.Descriptor{}, err
	}
	return b.Target, m.exported(ctx, ref.String(), b)
}

// PushBlobs uploads an image that is ready to leave under each of names; one
// with a digest must name what b is. Layers go beside each other, the manifest
// last.
func (m *Images) PushBlobs(ctx context.Context, b *Blobs, names []string, o PushOptions) error {
	if m.reg == nil {
		return fmt.Errorf("push: no registry may be asked: %w", errdefs.ErrFailedPrecondition)
	}
	for _, name := range names {
		ref, err := oci.ParseReference(name)
		if err != nil {
			return err
		}
		if ref.Digest != "" && ref.Digest != b.Target.Digest {
			return fmt.Errorf("push %s: %w", ref.Familiar(), &oci.DigestError{Want: ref.Digest, Got: b.Target.Digest})
		}
		if err := m.push(ctx, b, ref, o); err != nil {
			return fmt.Errorf("push %s: %w", ref.Familiar(), err)
		}
	}
	return nil
}

func (m *Images) push(ctx context.Context, b *Blobs, ref oci.Reference, o PushOptions) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, d := range slices.Sorted(maps.Keys(b.sources)) {
		g.Go(func() error { return m.pushLayer(gctx, b.sources[d], ref.Name(), o) })
	}
	for _, img := range b.Images {
		config := b.documents[img.ConfigDigest]
		g.Go(func() error {
			return m.reg.PushBlob(gctx, ref.Name(), config.desc, func(offset int64) (io.ReadCloser, error) {
				return config.reader(offset), nil
			}, nil)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if b.index {
		for _, img := range b.Images {
			child := b.documents[img.Manifest.Digest]
			at := ref.WithDigest(child.desc.Digest)
			if _, err := m.reg.PushManifest(ctx, at.String(), child.desc.MediaType, child.raw); err != nil {
				return err
			}
		}
	}
	target := b.documents[b.Target.Digest]
	at := ref
	if at.Tag != "" {
		at.Digest = ""
	}
	_, err := m.reg.PushManifest(ctx, at.String(), target.desc.MediaType, target.raw)
	return err
}

// pushLayer makes a layer's blob be in repo: it is there, or is mounted from
// another repository of the same registry that is known to have it, or goes up.
func (m *Images) pushLayer(ctx context.Context, src source, repo string, o PushOptions) error {
	s := newStatus(o.Sink, o.Vertex, src.desc.Digest)
	s.phase("Preparing", 0)
	if said, err := m.already(ctx, src, repo); err == nil && said != "" {
		s.done(said)
		m.noteOrigin(src.desc.Digest, repo)
		return nil
	}
	b, err := m.bytesOf(ctx, src, s)
	if err != nil {
		return err
	}
	defer b.Close()
	session, done := m.session(ctx, src.desc, repo)
	defer done()
	leave, err := take(ctx, m.slots)
	if err != nil {
		return err
	}
	defer leave()
	s.phase("Pushing", src.desc.Size)
	err = m.reg.ResumeBlob(ctx, repo, src.desc, session, func(offset int64) (io.ReadCloser, error) {
		return reader(b, b.Size(), offset), nil
	}, s.at)
	if err != nil {
		return err
	}
	s.done("Pushed")
	m.noteOrigin(src.desc.Digest, repo)
	return nil
}

// resumeBytes is the size from which an upload is worth being gone on with.
const resumeBytes = 1 << 20

// session is where the upload of a blob goes on that a process which died may
// have begun. Of several processes that push it to one repository the others
// wait, and then find it there; done lets them go on.
func (m *Images) session(ctx context.Context, d oci.Descriptor, repo string) (s registry.Session, done func()) {
	if d.Size < resumeBytes {
		return s, func() {}
	}
	key := "image/upload/" + string(d.Digest) + "/" + repo
	w, err := m.st.Work(ctx, "push", key, nil)
	if err != nil {
		return s, func() {} // it only saves work; what is wrong will show
	}
	if w.Duplicate() {
		return s, w.Done
	}
	if raw, err := m.st.Derived(key); err == nil {
		s.At = string(raw)
	}
	known := s.At
	s.Note = func(at string) {
		if at != known {
			known = at
			_ = m.st.PutDerived(key, []byte(at))
		}
	}
	return s, w.Done
}

// already makes a blob be in repo without a transfer, if it can, and says how:
// nobody mounts what is there, nor uploads what can be mounted. A layer that no
// repository of the registry is known to have is asked for by the upload.
func (m *Images) already(ctx context.Context, src source, repo string) (string, error) {
	from := m.origins(src, domainOf(repo))
	if len(from) == 0 {
		return "", nil
	}
	has, err := m.reg.HasBlob(ctx, repo, src.desc)
	if err != nil {
		return "", err
	}
	if has {
		return "Layer already exists", nil
	}
	for _, f := range from {
		if f == repo {
			continue // it was there
		}
		mounted, err := m.reg.MountBlob(ctx, repo, f, src.desc)
		if err != nil {
			return "", err
		}
		if mounted {
			return "Mounted from " + familiar(f), nil
		}
	}
	return "", nil
}

// bytesOf opens a blob in the store, fetched if need be.
func (m *Images) bytesOf(ctx context.Context, src source, s *status) (*store.Blob, error) {
	b, err := m.st.Blob(ctx, src.desc.Digest)
	if err == nil || !errdefs.IsNotFound(err) || src.repo == "" {
		return b, err
	}
	return m.download(ctx, src, s)
}

// originKey names the memo of a repository of a registry that has a blob.
func originKey(d oci.Digest, domain string) string {
	return "image/origin/" + string(d) + "/" + domain
}

// origins lists the repositories of a registry that a blob was pulled from, or
// that it was last seen in by a push from here.
func (m *Images) origins(src source, domain string) []string {
	var list []string
	if raw, err := m.st.Derived(originKey(src.desc.Digest, domain)); err == nil {
		if name, err := oci.ParseName(string(raw)); err == nil {
			list = append(list, name.Name())
		}
	}
	if src.repo != "" && domainOf(src.repo) == domain && !slices.Contains(list, src.repo) {
		list = append(list, src.repo)
	}
	return list
}

// noteOrigin remembers where a blob can be mounted from. Best effort.
func (m *Images) noteOrigin(d oci.Digest, repo string) {
	_ = m.st.PutDerived(originKey(d, domainOf(repo)), []byte(repo))
}

// exported records the blobs and the manifest that a named image has now, if
// the name still stands for it.
func (m *Images) exported(ctx context.Context, name string, b *Blobs) error {
	return m.locked(ctx, name, func() error {
		e, err := m.own(ctx, name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		changed := false
		for i, old := range e.Images {
			for _, img := range b.Images {
				if img.ConfigDigest == old.ConfigDigest && (old.Manifest == nil || old.Manifest.Digest != img.Manifest.Digest) {
					e.Images[i], changed = img, true
				}
			}
		}
		if len(e.Images) == len(b.Images) && (e.Target == nil || e.Target.Digest != b.Target.Digest) {
			e.Target, changed = &b.Target, true
		}
		if !changed {
			return nil
		}
		return m.put(ctx, e)
	})
}
