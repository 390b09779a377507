package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/tree"
)

// An attachedVolume is a volume that a container uses, with the lease on it.
type attachedVolume struct {
	name      string
	anonymous bool
	dir       string
	hold      *os.File
	mount     Mount
}

// attachVolumes opens the volumes that were asked for, and an anonymous one for
// each VOLUME of the image that nothing else is mounted on.
func (c *container) attachVolumes(ctx context.Context) error {
	mounts := c.request.Mounts
	taken := map[string]bool{}
	for _, m := range mounts {
		if taken[m.Target] {
			return fmt.Errorf("duplicate mount point %s: %w", m.Target, errdefs.ErrInvalidArgument)
		}
		taken[m.Target] = true
	}
	var declared []string
	for target := range c.config.Config.Volumes {
		if target = path.Clean("/" + target); !taken[target] {
			declared = append(declared, target)
		}
	}
	slices.Sort(declared)
	for _, target := range declared {
		mounts = append(mounts, Mount{Kind: MountVolume, Target: target})
	}
	for _, m := range mounts {
		if m.Kind != MountVolume {
			continue
		}
		if err := c.attachVolume(ctx, m); err != nil {
			return err
		}
	}
	if len(c.record.Volumes) > 0 {
		return c.record.write(c.dir.Path())
	}
	return nil
}

func (c *container) attachVolume(ctx context.Context, m Mount) error {
	v := attachedVolume{name: m.Source, mount: m}
	if v.name == "" {
		id, err := newID()
		if err != nil {
			return err
		}
		v.name, v.anonymous = id, true
		c.record.Volumes = append(c.record.Volumes, id)
	}
	dir, hold, fresh, err := c.engine.Store.Volume(ctx, v.name, true)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.name, err)
	}
	v.dir, v.hold = dir, hold
	c.volumes = append(c.volumes, v)
	if !fresh || m.NoCopy {
		return nil
	}
	if err := c.fill(ctx, dir, m.Target); err != nil {
		return fmt.Errorf("volume %s: copy %s of the image: %w", v.name, m.Target, err)
	}
	return nil
}

// fill copies what the image has at target into a fresh volume, with owners,
// modes and extended attributes, as docker does.
func (c *container) fill(ctx context.Context, dir, target string) error {
	root, err := tree.Resolve(c.view, target)
	if err != nil {
		return err
	}
	e, err := c.view.Lstat(root)
	if errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return layer.Create(ctx, dir, c.files(root), layer.UnpackOptions{})
}

// files lists the tree below root as entries relative to it.
func (c *container) files(root string) iter.Seq2[layer.File, error] {
	prefix := strings.Trim(root, "/")
	return func(yield func(layer.File, error) bool) {
		stop := errors.New("stop")
		err := tree.Walk(c.view, root, func(e *oci.Entry) error {
			full := e.Path
			f := layer.File{Entry: *e}
			if f.Path = relative(prefix, full); f.Hardlink {
				f.Link = relative(prefix, f.Link)
			}
			if e.Mode&unix.S_IFMT == unix.S_IFREG && !e.Hardlink {
				f.Open = opener(c.view, full)
			}
			if !yield(f, nil) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(layer.File{}, err)
		}
	}
}

func relative(prefix, full string) string {
	rel := strings.TrimPrefix(strings.TrimPrefix(strings.Trim(full, "/"), prefix), "/")
	if prefix == "." || prefix == "" {
		rel = strings.Trim(full, "/")
	}
	if rel == "" {
		return "."
	}
	return rel
}
