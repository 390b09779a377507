package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/erofs"
	"den/internal/layer"
	"den/internal/oci"
)

// A Problem is something that the protocol rules out.
type Problem struct {
	Path string // relative to the root
	What string

	inode uint64 // of the damaged object
}

// A Report is what Verify found.
type Report struct {
	// Objects is how many blobs, layers, records and references were looked at.
	Objects int
	// Problems are broken promises: the store is damaged.
	Problems []Problem
	// Dangling are names of things that are not in the store: what a record
	// names may be on its way or come from a registry, so each is just a miss.
	Dangling []string
	// Leftovers are files of processes that died, which the collector removes,
	// and of live ones.
	Leftovers []string
}

// Clean reports whether nothing is damaged.
func (r Report) Clean() bool { return len(r.Problems) == 0 }

// Verify checks the store beside its users: that names match contents, that
// metadata parses and that what is named is there. A deep check hashes every
// blob and reads every image of a tree.
func (s *Store) Verify(ctx context.Context, deep bool) (Report, error) {
	v := &verification{store: s, deep: deep}
	steps := []func(context.Context) error{v.objects, v.names, v.strangers, v.leftovers}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return v.Report, fmt.Errorf("verify: %w", err)
		}
	}
	return v.Report, nil
}

type verification struct {
	Report
	store  *Store
	deep   bool
	hollow []hollow
}

// A hollow layer lies over one that is not there. The collector may have taken that
// one because nothing names either; when something does, the store is damaged.
type hollow struct {
	rel, below string
	diffID     oci.Digest
	what       string
}

// judge says what the hollow layers mean, once it is known which of them r names.
func (v *verification) judge(r root) {
	v.hollow = slices.DeleteFunc(v.hollow, func(h hollow) bool {
		if !slices.Contains(r.Layers, h.diffID) || !v.store.still(r) || !v.store.has(h.rel) || v.store.has(h.below) {
			return false
		}
		v.problem(h.rel, "%s (if it is in a base store, say --base-store); %s names it", h.what, r.what)
		return true
	})
}

func (s *Store) has(rel string) bool {
	_, err := os.Lstat(s.path(rel))
	return err == nil
}

func (v *verification) problem(rel, format string, args ...any) {
	v.Problems = append(v.Problems, Problem{Path: rel, What: fmt.Sprintf(format, args...), inode: inodeOf(v.store.path(rel))})
}

func (v *verification) objects(ctx context.Context) error {
	return v.store.objects(ctx, func(o object) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if v.store.ofLaterFormat(o) {
			return nil
		}
		// The lease keeps the collector away meanwhile. A look is no use, but
		// removing the flag of an object costs nothing.
		l, err := v.store.acquire(ctx, o)
		if errdefs.IsNotFound(err) || errors.Is(err, errBusy) {
			return nil
		}
		if err != nil {
			return err
		}
		v.Objects++
		if o.kind == kindBlob {
			err = v.blob(ctx, o, l)
		} else {
			err = v.layer(ctx, o, l)
		}
		return errors.Join(err, l.release())
	})
}

func (v *verification) blob(ctx context.Context, o object, l *lease) error {
	want := oci.Digest("sha256:" + o.id)
	if l.info.Size == 0 && want != digest.FromBytes(nil) {
		v.problem(o.rel(), "is empty")
		return nil
	}
	if l.info.Mode&0o222 != 0 {
		v.problem(o.rel(), "has mode %04o, so it was never finished", l.info.Mode&0o7777)
	}
	if !v.deep {
		return nil
	}
	b := leasedBlob(want, l)
	got, _, err := oci.Copy(discardWriter{}, &ctxReader{ctx, b.Reader()})
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		v.problem(o.rel(), "can not be read: %v", err)
	} else if got != want {
		v.problem(o.rel(), "digest is %s", got)
	}
	return nil
}

func (v *verification) layer(ctx context.Context, o object, l *lease) error {
	meta, err := readMeta(l.path)
	if errors.Is(err, errBadMeta) {
		v.problem(o.rel(), "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	class, id, _ := strings.Cut(o.id, "/")
	if layerID(class, meta.DiffID) != id {
		v.problem(o.rel(), "is the layer %s of another class or format", meta.DiffID)
	}
	if err := v.tree(ctx, o, l, class); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(l.path, workDir)); err == nil {
		v.problem(o.rel(), "has a work directory, so it was never finished")
	}
	for _, d := range meta.Over {
		below := layerObject(class, layerID(class, d)).rel()
		if _, err := os.Lstat(v.store.path(below)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		what := fmt.Sprintf("lies over %s, which is not there", d)
		switch {
		case len(v.store.bases) == 0:
			v.hollow = append(v.hollow, hollow{o.rel(), below, meta.DiffID, what})
		case !v.store.exists(layerObject(class, layerID(class, d))):
			// Its owner has removed it: this layer is a miss, and goes when it is asked for.
			v.Dangling = append(v.Dangling, o.rel()+" "+what)
		}
	}
	return nil
}

// tree looks at a layer's own tree. In image form a deep check reads all of it.
func (v *verification) tree(ctx context.Context, o object, l *lease, class string) error {
	path := filepath.Join(l.path, treeName(class))
	if class != imageClass {
		if info, err := os.Lstat(path); err != nil || !info.IsDir() {
			v.problem(o.rel(), "has no tree")
		}
		return nil
	}
	r, err := erofs.Open(path)
	if err == nil {
		err = r.Close()
	}
	if err == nil && v.deep {
		_, err = layer.WriteTar(ctx, discardWriter{}, layer.WalkUpper(path))
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrNotExist):
		v.problem(o.rel(), "has no tree")
	case err != nil:
		v.problem(o.rel(), "its image can not be read: %v", err)
	}
	return nil
}

// names checks references, containers and records.
func (v *verification) names(ctx context.Context) error {
	s := v.store
	classes, err := s.classes()
	if err != nil {
		return err
	}
	check := func(r root) error {
		v.Objects++
		v.judge(r)
		for _, d := range r.Blobs {
			if !s.exists(blobObject(d)) && s.still(r) {
				v.Dangling = append(v.Dangling, fmt.Sprintf("%s: blob %s", r.what, d))
			}
		}
		for _, d := range r.Layers {
			found := false
			for _, class := range classes {
				found = found || s.exists(layerObject(class, layerID(class, d)))
			}
			if !found && s.still(r) {
				v.Dangling = append(v.Dangling, fmt.Sprintf("%s: layer %s", r.what, d))
			}
		}
		return nil
	}
	if err := s.roots(ctx, check); err != nil {
		return err
	}
	err = s.records(ctx, check)
	for _, h := range v.hollow {
		v.Dangling = append(v.Dangling, h.rel+" "+h.what)
	}
	return err
}

func (s *Store) exists(o object) bool {
	_, err := os.Lstat(s.path(o.rel()))
	for _, b := range s.bases {
		if err == nil {
			break
		}
		_, err = os.Lstat(b.path(o.rel()))
	}
	return err == nil
}

// still reports whether r is there: it may have been evicted, and its objects
// collected, while we looked.
func (s *Store) still(r root) bool {
	_, err := os.Lstat(s.path(r.rel))
	return err == nil
}

// strangers finds metadata that does not parse or has no business where it is.
func (v *verification) strangers(ctx context.Context) error {
	if err := v.store.eachMetadata(ctx, v.metadata); err != nil {
		return err
	}
	for _, folder := range []string{"blobs/sha256", "layers/*/*"} {
		rels, err := fs.Glob(os.DirFS(v.store.root), folder+"/*")
		if err != nil {
			return err
		}
		for _, rel := range rels {
			if !isHex(filepath.Base(rel)) {
				v.problem(rel, "is no object's name")
			}
		}
	}
	return nil
}

func (v *verification) metadata(rel string) error {
	var r Ref
	_, err := readJSON(v.store.path(rel), &r)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_, bad := errors.AsType[*badFileError](err)
	if err != nil && !bad {
		return err
	}
	if err == nil {
		err = r.check()
	}
	if err == nil && strings.Contains(rel, "refs/") && filepath.Base(rel) != refFile(r.Name) {
		err = fmt.Errorf("it names %q", r.Name)
	}
	if err != nil {
		v.problem(rel, "%v", err)
	}
	return nil
}

func (v *verification) leftovers(ctx context.Context) error {
	for _, folder := range []string{"tmp", "ingest", "trash", "condemned", "work"} {
		err := v.store.eachName(ctx, folder, func(path string) error {
			v.Leftovers = append(v.Leftovers, filepath.Join(folder, filepath.Base(path)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
