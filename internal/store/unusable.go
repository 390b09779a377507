package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/sys"
)

// dropUnusable removes what is not a suspect and of no use all the same, and says
// how much: layers over one of the suspects, and on btrfs what has a name and
// no content.
//
// btrfs logs the fsync of a file apart from other changes. The replay of that log
// brings back the directories above the file and, where those were new, names in
// them, without the content of any file but that one, and without the markers.
func (s *Store) dropUnusable(ctx context.Context, suspects []string) (n int, err error) {
	fsys, err := sys.FSName(s.root)
	if err != nil {
		return 0, err
	}
	gone := map[string]bool{} // each layer among the suspects is
	for _, rel := range suspects {
		if strings.HasPrefix(rel, "layers/") {
			gone[rel] = true
		}
	}
	if len(gone) == 0 && fsys != "btrfs" {
		return 0, nil
	}
	drop := func(rel string) error {
		n++
		gone[rel] = true
		return s.drop(rel)
	}
	over := map[string][]string{}
	err = s.objects(ctx, func(o object) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel := o.rel()
		if o.kind == kindBlob {
			if fsys != "btrfs" || !s.hollowBlob(o) {
				return nil
			}
			return drop(rel)
		}
		meta, err := readMeta(s.path(rel))
		if errors.Is(err, errBadMeta) {
			return drop(rel)
		}
		class, _, _ := strings.Cut(o.id, "/")
		for _, d := range meta.Over {
			over[rel] = append(over[rel], layerObject(class, layerID(class, d)).rel())
		}
		return err
	})
	if err != nil {
		return n, err
	}
	for rel, below := range over {
		// A layer names all trees below it, not only the next.
		if !slices.ContainsFunc(below, func(b string) bool { return gone[b] }) {
			continue
		}
		if err := drop(rel); err != nil {
			return n, err
		}
	}
	if fsys != "btrfs" {
		return n, nil
	}
	return n, s.eachMetadata(ctx, func(rel string) error {
		if ok, err := s.sound(ctx, rel); ok || err != nil {
			return err
		}
		return drop(rel)
	})
}

// dropOrphans removes, with a line for each, the tags of images that exist nowhere
// else: never exported, so that there is no blob to make the trees of, and with a
// layer that is gone. What was pulled or exported stays: it is fetched or unpacked again.
func (s *Store) dropOrphans(ctx context.Context) error {
	classes, err := s.classes()
	if err != nil {
		return err
	}
	here := func(d oci.Digest) bool {
		return slices.ContainsFunc(classes, func(class string) bool {
			return exists(s.path(layerObject(class, layerID(class, d)).rel()))
		})
	}
	rels, err := fs.Glob(os.DirFS(s.root), "engines/*/refs/*")
	if err != nil {
		return err
	}
	for _, rel := range rels {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var r Ref
		if _, err := readJSON(s.path(rel), &r); err != nil || len(r.Blobs) > 0 {
			continue // what cannot be read is dealt with elsewhere
		}
		i := slices.IndexFunc(r.Layers, func(d oci.Digest) bool { return !here(d) })
		if i < 0 {
			continue
		}
		if err := s.drop(rel); err != nil {
			return err
		}
		s.notice(fmt.Sprintf("store %s: image %s was built just before a crash; its layer %s is lost and so is the name: build it again", s.root, r.Name, r.Layers[i]))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// hollowBlob reports whether o has no content and should.
func (s *Store) hollowBlob(o object) bool {
	info, err := os.Lstat(s.path(o.rel()))
	return err == nil && info.Size() == 0 && o.id != digest.FromBytes(nil).Encoded()
}

// eachMetadata calls fn for each record, reference and list of a container's roots.
func (s *Store) eachMetadata(ctx context.Context, fn func(rel string) error) error {
	for _, pattern := range []string{"cache/*/*", pulledFolder + "/*", "engines/*/refs/*", "engines/*/containers/*/" + rootsFile} {
		rels, err := fs.Glob(os.DirFS(s.root), pattern)
		if err != nil {
			return err
		}
		for _, rel := range rels {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := fn(rel); err != nil {
				return err
			}
		}
	}
	return nil
}

// beginBoot makes the folder of this boot's epochs. That is what the next boot
// knows by that there was one, so on btrfs, where later files may come back without
// it, it is on disk first, under a name that counts as another boot's.
func (s *Store) beginBoot(boot string) error {
	dir := s.path("sync", boot)
	fsys, err := sys.FSName(s.root)
	if err != nil {
		return err
	}
	if fsys != "btrfs" {
		return os.Mkdir(dir, 0o755)
	}
	early := s.path("sync", "new-"+boot)
	if err := os.Mkdir(early, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.Open(early)
	if err != nil {
		return err
	}
	err = sys.Syncfs(f)
	if err == nil {
		err = os.Rename(early, dir)
	}
	return errors.Join(err, f.Close())
}
