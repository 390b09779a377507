package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
)

// A Ref is a name for an image: a canonical reference, or "sha256:..." for an
// image without one, and what it keeps.
type Ref struct {
	Name string `json:"name"`
	Record
	// Base is the base store that it was found in, which nobody here changes.
	Base string `json:"-"`
}

// pulledFolder holds the references that all engines share.
const pulledFolder = "pulled"

func (s *Store) refsFolder() string { return s.engineRel("refs") }

// Ref returns this engine's reference called name; the error is of class
// errdefs.ErrNotFound when there is none.
func (s *Store) Ref(ctx context.Context, name string) (*Ref, error) {
	return s.readRef(s.refsFolder(), name)
}

// SetRef makes r.Name name what r holds, for this engine; the last writer
// wins. The caller holds leases on all that r names.
func (s *Store) SetRef(ctx context.Context, r Ref) error {
	if err := s.lockEngine(ctx, true); err != nil {
		return err
	}
	return s.writeRef(s.refsFolder(), r)
}

// DeleteRef removes this engine's reference called name; the error is of class
// errdefs.ErrNotFound when there is none.
func (s *Store) DeleteRef(ctx context.Context, name string) error {
	return s.removeRef(s.refsFolder(), name)
}

// Refs returns this engine's references, by name.
func (s *Store) Refs(ctx context.Context) ([]Ref, error) { return s.listRefs(ctx, s.refsFolder()) }

// PulledRef is Ref for the references that all engines share, those of the
// bases included.
func (s *Store) PulledRef(ctx context.Context, name string) (*Ref, error) {
	return orBase(ctx, s, func(s *Store) (*Ref, error) { return s.ownPulledRef(name) })
}

func (s *Store) ownPulledRef(name string) (*Ref, error) {
	if s.suspect(filepath.Join(pulledFolder, refFile(name))) {
		return nil, fmt.Errorf("reference %s: %w", name, errdefs.ErrNotFound)
	}
	r, err := s.readRef(pulledFolder, name)
	if err == nil {
		s.touchName(s.path(pulledFolder, refFile(name)))
	}
	return r, err
}

// SetPulledRef is SetRef for the references that all engines share.
func (s *Store) SetPulledRef(ctx context.Context, r Ref) error { return s.writeRef(pulledFolder, r) }

// DeletePulledRef is DeleteRef for the references that all engines share; the
// error is of class errdefs.ErrFailedPrecondition when only a base has it.
func (s *Store) DeletePulledRef(ctx context.Context, name string) error {
	err := s.removeRef(pulledFolder, name)
	if !errdefs.IsNotFound(err) {
		return err
	}
	for _, b := range s.bases {
		if _, berr := b.ownPulledRef(name); berr == nil {
			return fmt.Errorf("delete reference %s: it is in the base store %s, which is only read: %w", name, b.root, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}

// PulledRefs is Refs for the references that all engines share, those of the
// bases included.
func (s *Store) PulledRefs(ctx context.Context) ([]Ref, error) {
	refs, err := s.listRefs(ctx, pulledFolder)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, r := range refs {
		seen[r.Name] = true
	}
	for _, b := range s.bases {
		below, err := b.listRefs(ctx, pulledFolder)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			continue // a base is a cache
		}
		for _, r := range below {
			if !seen[r.Name] && !b.suspect(filepath.Join(pulledFolder, refFile(r.Name))) {
				seen[r.Name] = true
				r.Base = b.root
				refs = append(refs, r)
			}
		}
	}
	slices.SortFunc(refs, func(a, b Ref) int { return strings.Compare(a.Name, b.Name) })
	return refs, nil
}

func refFile(name string) string { return hexSum(name) + ".json" }

func (s *Store) readRef(folder, name string) (*Ref, error) {
	r, err := readRefFile(s.path(folder, refFile(name)))
	if err == nil && r.Name != name {
		err = &badFileError{fmt.Errorf("it names %q", r.Name)}
	}
	if err != nil {
		return nil, fmt.Errorf("reference %s: %w", name, notFoundIfBad(err))
	}
	return r, nil
}

func readRefFile(path string) (*Ref, error) {
	var r Ref
	if _, err := readJSON(path, &r); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, &badFileError{err}
	}
	return &r, nil
}

func (s *Store) writeRef(folder string, r Ref) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("set reference %s: %w: %w", r.Name, err, errdefs.ErrInvalidArgument)
	}
	if r.Name == "" || len(r.Name) > 4096 {
		return fmt.Errorf("set reference: name of %d bytes: %w", len(r.Name), errdefs.ErrInvalidArgument)
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = failpoint.Hit("store.ref.write")
	}
	if err == nil {
		err = s.writeFile(filepath.Join(folder, refFile(r.Name)), data, true)
	}
	if err == nil {
		// A name that somebody typed should outlast the machine in strict mode.
		err = s.log.Flush()
	}
	if err != nil {
		return fmt.Errorf("set reference %s: %w", r.Name, err)
	}
	return nil
}

func (s *Store) removeRef(folder, name string) error {
	if err := s.writable(); err != nil {
		return err
	}
	err := failpoint.Hit("store.ref.remove")
	if err == nil {
		err = os.Remove(s.path(folder, refFile(name)))
	}
	if err != nil {
		return fmt.Errorf("delete reference %s: %w", name, notFoundIfBad(err))
	}
	return nil
}

// listRefs leaves out what does not parse.
func (s *Store) listRefs(ctx context.Context, folder string) ([]Ref, error) {
	names, err := readNames(s.path(folder))
	if err != nil {
		return nil, fmt.Errorf("list references: %w", err)
	}
	var refs []Ref
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r, err := readRefFile(s.path(folder, name))
		if errdefs.IsNotFound(notFoundIfBad(err)) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list references: %w", err)
		}
		refs = append(refs, *r)
	}
	slices.SortFunc(refs, func(a, b Ref) int { return strings.Compare(a.Name, b.Name) })
	return refs, nil
}

// readNames lists a directory, sorted; one that is not there is empty.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	err = ignore(ignore(err, unix.ENOTDIR), unix.ENOENT) // ENOENT: removed after it was opened
	slices.Sort(names)
	return names, errors.Join(err, f.Close())
}
