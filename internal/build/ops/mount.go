package ops

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
	"den/internal/tree"
)

// prepare makes the root file system and the mounts of a step, and says what
// becomes its results.
func (s *step) prepare(ctx context.Context) error {
	s.results = make([]stepResult, s.outputs)
	caches, err := s.cacheMounts(ctx)
	if err != nil {
		return err
	}
	for i, m := range s.op.Mounts {
		if m.Dest == pb.RootMount {
			err = s.prepareRoot(ctx, m)
		} else {
			err = s.prepareMount(ctx, m, caches[i])
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	slices.SortStableFunc(s.mounts, func(a, b oci.Mount) int { return cmp.Compare(a.Target, b.Target) })
	return nil
}

// input is what a mount shows; nil is the empty file system.
func (s *step) input(m *pb.Mount) (*Ref, error) {
	if m.Input == int64(pb.Empty) {
		return nil, nil
	}
	if m.Input < 0 || m.Input >= int64(len(s.inputs)) {
		return nil, fmt.Errorf("input %d of %d: %w", m.Input, len(s.inputs), errdefs.ErrInvalidArgument)
	}
	return s.inputs[m.Input], nil
}

// prepareRoot puts a draft on the root even where nothing of it is kept or
// written: mount points have to be made somewhere.
func (s *step) prepareRoot(ctx context.Context, m *pb.Mount) error {
	if m.MountType != pb.MountType_BIND {
		return fmt.Errorf("type %s for the root: %w", m.MountType, errdefs.ErrInvalidArgument)
	}
	if path.Join("/", m.Selector) != "/" {
		return unsupported("a root file system that is a sub-directory")
	}
	r, err := s.input(m)
	if err != nil {
		return err
	}
	w, err := s.newWritable(ctx, r)
	if err != nil {
		return err
	}
	s.root, s.rootRef, s.readonly = w.active.Root, r, m.Readonly
	s.root.Target = "/"
	if m.Output != int64(pb.SkipOutput) {
		s.results[m.Output] = stepResult{layer: w}
	}
	return nil
}

func (s *step) prepareMount(ctx context.Context, m *pb.Mount, cache *store.CacheMount) error {
	target := path.Clean(m.Dest)
	if !path.IsAbs(target) {
		target = path.Join("/", s.op.Meta.Cwd, target)
	}
	var mnt oci.Mount
	var ok = true
	var err error
	switch m.MountType {
	case pb.MountType_BIND:
		mnt, err = s.bindMount(ctx, m)
	case pb.MountType_CACHE:
		mnt, err = s.cacheMount(m, cache)
	case pb.MountType_TMPFS:
		mnt, ok = s.tmpfsMount(m, target)
	case pb.MountType_SECRET:
		mnt, ok, err = s.secretMount(ctx, m, target)
	case pb.MountType_SSH:
		mnt, ok, err = s.sshMount(ctx, m, target)
	default:
		err = unsupported("mount type " + m.MountType.String())
	}
	if err != nil || !ok {
		return err
	}
	mnt.Target = target
	s.mounts = append(s.mounts, mnt)
	return nil
}

// bindMount shows a part of an input. Whatever can be written gets a draft of
// its own, which becomes a result or is thrown away.
func (s *step) bindMount(ctx context.Context, m *pb.Mount) (oci.Mount, error) {
	r, err := s.input(m)
	if err != nil {
		return oci.Mount{}, err
	}
	keep := m.Output != int64(pb.SkipOutput)
	var mnt oci.Mount
	if m.Readonly && r != nil {
		if keep {
			s.results[m.Output] = stepResult{ref: r}
		}
		mnt, err = s.view(ctx, r)
	} else {
		var w *writable
		if w, err = s.newWritable(ctx, r); err == nil {
			mnt = w.active.Root
			if keep {
				s.results[m.Output] = stepResult{layer: w}
			}
		}
	}
	if err != nil {
		return oci.Mount{}, err
	}
	if m.Readonly {
		mnt.Options = withOption(mnt.Options, "ro")
	}
	return selectIn(ctx, mnt, r, m.Selector)
}

// view mounts r read-only.
func (s *step) view(ctx context.Context, r *Ref) (oci.Mount, error) {
	stack, err := stackOf(ctx, r)
	if err != nil {
		return oci.Mount{}, err
	}
	a, err := s.env.Driver.View(ctx, stack)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(a.Close)
	return a.Root, nil
}

// selectIn narrows a mount of r down to a path in it. Its symbolic links are
// followed here, inside r, so that the executor meets none.
func selectIn(ctx context.Context, mnt oci.Mount, r *Ref, selector string) (oci.Mount, error) {
	if path.Join("/", selector) == "/" {
		return mnt, nil
	}
	if r == nil {
		return oci.Mount{}, fmt.Errorf("%q: %w", selector, os.ErrNotExist)
	}
	fs, done, err := r.FS(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	defer done()
	p, err := resolveIn(fs, selector)
	if err != nil {
		return oci.Mount{}, fmt.Errorf("%q: %w", selector, err)
	}
	if mnt.Type == "overlay" {
		mnt.Source = p
	} else {
		mnt.Source = filepath.Join(mnt.Source, p)
	}
	return mnt, nil
}

// resolveIn follows all symbolic links of a path that has to exist.
func resolveIn(fs tree.FS, p string) (string, error) {
	p, err := tree.Resolve(fs, p)
	if err != nil {
		return "", err
	}
	_, err = fs.Lstat(p)
	return p, err
}

// tmpfsMount is memory. /dev/shm is one of the sandbox's own mounts and only
// gets its size from here.
func (s *step) tmpfsMount(m *pb.Mount, target string) (oci.Mount, bool) {
	size := m.TmpfsOpt.GetSize()
	if target == "/dev/shm" && size > 0 && !m.Readonly {
		s.shmBytes = size
		return oci.Mount{}, false
	}
	mnt := oci.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}}
	if m.Readonly {
		mnt.Options = append(mnt.Options, "ro")
	}
	if size > 0 {
		mnt.Options = append(mnt.Options, fmt.Sprintf("size=%d", size))
	}
	return mnt, true
}

// cacheMounts takes all cache mounts of the step, in one call so that two steps
// cannot wait for each other. The result is by index of the mount.
func (s *step) cacheMounts(ctx context.Context) (map[int]*store.CacheMount, error) {
	var reqs []store.CacheMountRequest
	var index []int
	for i, m := range s.op.Mounts {
		if m.MountType != pb.MountType_CACHE {
			continue
		}
		req, err := s.cacheRequest(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		reqs, index = append(reqs, req), append(index, i)
	}
	if len(reqs) == 0 {
		return nil, nil
	}
	got, err := s.env.Store.CacheMounts(ctx, reqs, func() { s.log("waiting for a cache mount that another step has locked\n") })
	if err != nil {
		return nil, err
	}
	out := map[int]*store.CacheMount{}
	for n, c := range got {
		s.onClose(c.Close)
		out[index[n]] = c
	}
	return out, nil
}

// cacheRequest names a cache mount: its id, and the content that a fresh one
// starts with.
func (s *step) cacheRequest(ctx context.Context, m *pb.Mount) (store.CacheMountRequest, error) {
	if m.CacheOpt == nil {
		return store.CacheMountRequest{}, fmt.Errorf("no cache options: %w", errdefs.ErrInvalidArgument)
	}
	r, err := s.input(m)
	if err != nil {
		return store.CacheMountRequest{}, err
	}
	req := store.CacheMountRequest{ID: m.CacheOpt.ID}
	switch m.CacheOpt.Sharing {
	case pb.CacheSharingOpt_SHARED:
		req.Sharing = "shared"
	case pb.CacheSharingOpt_PRIVATE:
		req.Sharing = "private"
	case pb.CacheSharingOpt_LOCKED:
		req.Sharing = "locked"
	default:
		return req, fmt.Errorf("sharing %d: %w", m.CacheOpt.Sharing, errdefs.ErrInvalidArgument)
	}
	if r != nil {
		if m.Output != int64(pb.SkipOutput) {
			s.results[m.Output] = stepResult{ref: r}
		}
		req.ID += ":" + string(r.ID())
		req.Init = func(dir string) error { return s.env.fill(ctx, dir, r) }
	} else if m.Output != int64(pb.SkipOutput) {
		return req, fmt.Errorf("an output without an input: %w", errdefs.ErrInvalidArgument)
	}
	return req, nil
}

// fill copies what r holds into an empty directory.
func (e *Env) fill(ctx context.Context, dir string, r *Ref) error {
	trees, err := r.Trees(ctx)
	if err != nil {
		return err
	}
	return layer.Create(ctx, dir, layer.WalkStack(dirsOf(trees)), layer.UnpackOptions{InUserns: e.InUserns})
}

// cacheMount shows a cache directory, or the selected part of it.
func (s *step) cacheMount(m *pb.Mount, c *store.CacheMount) (oci.Mount, error) {
	mnt := oci.Mount{Type: "bind", Source: c.Dir(), Options: []string{"rbind"}, Hold: c.Hold()}
	if m.Readonly {
		mnt.Options = append(mnt.Options, "ro")
	}
	if path.Join("/", m.Selector) == "/" {
		return mnt, nil
	}
	// Steps have written here: links are followed inside, and what is found is
	// held open so that it cannot be swapped for a link before it is mounted.
	fs, err := tree.Dir(c.Dir())
	if err != nil {
		return oci.Mount{}, err
	}
	defer fs.Close()
	p, err := resolveIn(fs, m.Selector)
	if err != nil {
		return oci.Mount{}, fmt.Errorf("%q: %w", m.Selector, err)
	}
	return s.pinned(mnt, c.Dir(), p)
}

func withOption(options []string, o string) []string {
	if slices.Contains(options, o) {
		return options
	}
	return append(slices.Clone(options), o)
}
