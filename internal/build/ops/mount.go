package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/store"
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
		s.wrote = func(a layer.Applied) { w.wrote = &a }
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
		mnt = s.cacheMount(m, cache)
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

// bindMount shows an input or a part of it. Whatever can be written gets a
// draft of its own, which becomes a result or is thrown away.
func (s *step) bindMount(ctx context.Context, m *pb.Mount) (oci.Mount, error) {
	r, err := s.input(m)
	if err != nil {
		return oci.Mount{}, err
	}
	keep := m.Output != int64(pb.SkipOutput)
	fixed := m.Readonly && r != nil
	if keep && fixed {
		s.results[m.Output] = stepResult{ref: r}
	}
	var mnt oci.Mount
	switch part := path.Join("/", m.Selector) != "/"; {
	case part && keep && !fixed:
		return oci.Mount{}, unsupported("a sub-directory whose changes are kept")
	case part:
		mnt, err = s.mountSelected(ctx, r, m.Selector, fixed)
	case fixed:
		var stack []snapshot.Tree
		if stack, err = stackOf(ctx, r); err == nil {
			mnt, err = s.view(ctx, stack)
		}
	default:
		var w *writable
		if w, err = s.newWritable(ctx, r); err == nil {
			mnt = w.active.Root
			if keep {
				s.results[m.Output] = stepResult{layer: w}
			}
		}
	}
	if err == nil && m.Readonly {
		mnt.Options = withOption(mnt.Options, "ro")
	}
	return mnt, err
}

// view mounts a stack read-only.
func (s *step) view(ctx context.Context, stack []snapshot.Tree) (oci.Mount, error) {
	a, err := s.env.Driver.View(ctx, stack)
	if err != nil {
		return oci.Mount{}, err
	}
	s.onClose(a.Close)
	return a.Root, nil
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
		s.written = append(s.written, c.Dir())
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
		req.Init = func(dir string) error { return s.env.fill(ctx, dir, r, m.Selector) }
		if sel := path.Join("/", m.Selector); sel != "/" {
			// The part alone is kept: its name in the base says nothing to a
			// step, and nobody can swap it for a link.
			req.ID += ":" + sel
		}
	} else if path.Join("/", m.Selector) != "/" {
		return req, fmt.Errorf("a selector without an input: %w", errdefs.ErrInvalidArgument)
	} else if m.Output != int64(pb.SkipOutput) {
		return req, fmt.Errorf("an output without an input: %w", errdefs.ErrInvalidArgument)
	}
	return req, nil
}

// fill copies what r holds at a path into an empty directory.
func (e *Env) fill(ctx context.Context, dir string, r *Ref, selector string) error {
	fs, done, err := r.FS(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := resolveIn(fs, selector)
	if err != nil {
		return fmt.Errorf("%q: %w", selector, err)
	}
	if found, err := fs.Lstat(p); err != nil || found.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.Join(err, fmt.Errorf("%q: not a directory: %w", selector, errdefs.ErrInvalidArgument))
	}
	return layer.Create(ctx, dir, snapshot.Files(fs, p), e.scratchOptions())
}

// cacheMount shows a cache directory.
func (s *step) cacheMount(m *pb.Mount, c *store.CacheMount) oci.Mount {
	mnt := oci.Mount{Type: "bind", Source: c.Dir(), Options: []string{"rbind"}, Hold: c.Hold()}
	if m.Readonly {
		mnt.Options = append(mnt.Options, "ro")
	}
	return mnt
}

func withOption(options []string, o string) []string {
	if slices.Contains(options, o) {
		return options
	}
	return append(slices.Clone(options), o)
}
