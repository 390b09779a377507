package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// RemoveOptions refine Remove.
type RemoveOptions struct {
	// Force removes an image by ID that has several names, or that
	// containers use.
	Force bool
}

// Removed is one thing that is gone; one of its fields is set. It is a line of
// docker rmi.
type Removed struct {
	Untagged string     `json:",omitempty"`
	Deleted  oci.Digest `json:",omitempty"`
}

func (r Removed) String() string {
	if r.Untagged != "" {
		return "Untagged: " + r.Untagged
	}
	return "Deleted: " + string(r.Deleted)
}

// A UsedError says why an image is not removed without force. Its class is
// errdefs.ErrFailedPrecondition.
type UsedError struct {
	ConfigDigest oci.Digest
	// Containers use it; or else it has names in several Repositories.
	Containers, Repositories []string
	// ByID says that it was to be removed by its ID.
	ByID bool
	name string
}

func (e *UsedError) Error() string {
	if len(e.Containers) == 0 {
		return fmt.Sprintf("remove image %s: it has names in several repositories (%s), remove it by name or with --force", e.name, strings.Join(e.Repositories, ", "))
	}
	return fmt.Sprintf("remove image %s: container %s uses it, remove that first or use --force", e.name, strings.Join(e.Containers, ", "))
}

// Unwrap gives the error its class.
func (e *UsedError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// Remove takes a name away from its image, or, given an ID, all names. With
// its last name the image is gone; the store's collector takes its layers when
// nothing else needs them.
func (m *Images) Remove(ctx context.Context, name string, o RemoveOptions) ([]Removed, error) {
	e, img, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := m.entries(ctx)
	if err != nil {
		return nil, err
	}
	config := e.id()
	names := []*entry{e}
	if img != nil {
		config = img.ConfigDigest
		names = slices.DeleteFunc(slices.Clone(all), func(e *entry) bool { return !e.has(config) })
		if repos := repositories(names); len(repos) > 1 && !o.Force {
			return nil, &UsedError{ConfigDigest: config, Repositories: repos, ByID: true, name: shortID(config)}
		}
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(e *entry) bool {
		return slices.ContainsFunc(names, func(n *entry) bool { return n.name == e.name })
	})
	last := !slices.ContainsFunc(rest, func(e *entry) bool { return e.has(config) })
	if last && !o.Force && m.o.InUse != nil {
		if users := m.o.InUse(config); len(users) > 0 {
			return nil, &UsedError{ConfigDigest: config, Containers: users, ByID: img != nil, name: familiar(name)}
		}
	}
	var out []Removed
	for _, n := range names {
		removed, err := m.untag(ctx, n, rest)
		if err != nil {
			return out, err
		}
		out = append(out, removed...)
	}
	if last {
		for _, n := range names {
			out = append(out, deleted(n, rest)...)
		}
	}
	return compact(out), nil
}

// repositories lists the repositories that entries are named in.
func repositories(entries []*entry) []string {
	var repos []string
	for _, e := range entries {
		if ref, err := oci.ParseName(e.name); err == nil && !untagged(e.name) {
			repos = append(repos, ref.FamiliarName())
		}
	}
	slices.Sort(repos)
	return slices.Compact(repos)
}

// untag removes a name, here and from the pulled ones.
func (m *Images) untag(ctx context.Context, e *entry, rest []*entry) ([]Removed, error) {
	err := m.locked(ctx, e.name, func() error {
		own := m.st.DeleteRef(ctx, e.name)
		if own != nil && !errdefs.IsNotFound(own) {
			return own
		}
		err := m.st.DeletePulledRef(ctx, e.name)
		if errdefs.IsNotFound(err) || own == nil && errdefs.IsFailedPrecondition(err) {
			return nil // of a base's, one's own name is what goes
		}
		return err
	})
	if err != nil || untagged(e.name) {
		return nil, err
	}
	out := []Removed{{Untagged: familiar(e.name)}}
	ref, err := oci.ParseReference(e.name)
	if err != nil || e.Target == nil {
		return out, nil
	}
	for _, other := range rest {
		if r, err := oci.ParseName(other.name); err == nil && r.Name() == ref.Name() && other.pinned(e.Target.Digest) {
			return out, nil
		}
	}
	return append(out, Removed{Untagged: e.digestRef(ref)}), nil
}

// deleted lists the configurations and layer stacks that only e had, as docker
// names them: by configuration digest and chainIDs, top first.
func deleted(e *entry, rest []*entry) []Removed {
	used := map[oci.Digest]bool{}
	for _, other := range rest {
		for _, img := range other.Images {
			used[img.ConfigDigest] = true
			for _, chain := range img.chains() {
				used[chain] = true
			}
		}
	}
	var out []Removed
	for _, img := range e.Images {
		if used[img.ConfigDigest] {
			continue
		}
		out = append(out, Removed{Deleted: img.ConfigDigest})
		for _, chain := range slices.Backward(img.chains()) {
			if !used[chain] {
				out = append(out, Removed{Deleted: chain})
			}
		}
	}
	return out
}

// chains lists the identity of each stack of the image's layers, bottom first.
func (i *Image) chains() []oci.Digest {
	var chains []oci.Digest
	for n, l := range i.Layers {
		if n == 0 {
			chains = append(chains, l.DiffID)
			continue
		}
		chains = append(chains, oci.ChainID([]oci.Digest{chains[n-1], l.DiffID}))
	}
	return chains
}

// compact drops what is said twice.
func compact(in []Removed) []Removed {
	var out []Removed
	for _, r := range in {
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// PruneOptions refine Prune.
type PruneOptions struct {
	// All removes every image that no container uses, not only those
	// without a name.
	All bool
	// Filters as for List, without dangling and reference.
	Filters map[string][]string
}

// Prune removes images that nobody needs. reclaimableBytes is what the store's
// collector may take now.
func (m *Images) Prune(ctx context.Context, o PruneOptions) (removed []Removed, reclaimableBytes int64, err error) {
	all, err := m.entries(ctx)
	if err != nil {
		return nil, 0, err
	}
	gone, rest, err := m.planPrune(ctx, all, o)
	if err != nil {
		return nil, 0, err
	}
	reclaimableBytes, err = m.onlyIn(ctx, gone, rest)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range gone {
		lines, err := m.untag(ctx, e, rest)
		if err != nil {
			return compact(removed), 0, err
		}
		removed = append(append(removed, lines...), deleted(e, rest)...)
	}
	return compact(removed), reclaimableBytes, nil
}

// planPrune divides entries into those that go and those that stay.
func (m *Images) planPrune(ctx context.Context, all []*entry, o PruneOptions) (gone, rest []*entry, err error) {
	keep, err := m.filter(ctx, o.Filters)
	if err != nil {
		return nil, nil, err
	}
	list, err := m.summaries(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	goes := map[oci.Digest]bool{}
	for _, s := range list {
		used := m.o.InUse != nil && len(m.o.InUse(s.ConfigDigest)) > 0
		goes[s.ConfigDigest] = !used && (o.All || s.Dangling()) && keep(s)
	}
	for _, e := range all {
		if !e.base && goes[bestOf(e.Images, m.o.Platform).ConfigDigest] {
			gone = append(gone, e)
		} else {
			rest = append(rest, e)
		}
	}
	return gone, rest, nil
}

// onlyIn sums up the layers that gone has and rest has not.
func (m *Images) onlyIn(ctx context.Context, gone, rest []*entry) (int64, error) {
	layers := layersIn(gone)
	for d := range layersIn(rest) {
		delete(layers, d)
	}
	var sum int64
	for _, l := range layers {
		n, err := m.layerSize(ctx, l)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func layersIn(entries []*entry) map[oci.Digest]Layer {
	layers := map[oci.Digest]Layer{}
	for _, e := range entries {
		for _, img := range e.Images {
			for _, l := range img.Layers {
				layers[l.DiffID] = l
			}
		}
	}
	return layers
}
