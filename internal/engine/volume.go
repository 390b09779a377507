package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/layer"
	"den/internal/snapshot"
	"den/internal/sys"
	"den/internal/tree"
)

// An attachedVolume is a volume that a container uses, with the lease on it.
type attachedVolume struct {
	name  string
	dir   string
	hold  *os.File
	mount Mount
}

// attachVolumes opens the volumes that were asked for, and an anonymous one for
// each VOLUME of the image that nothing else is mounted on. The record names
// them before they are made, so that they are found again whatever happens.
func (c *container) attachVolumes(ctx context.Context) error {
	var wanted []attachedVolume
	taken := map[string]bool{}
	for _, m := range c.request.Mounts {
		taken[path.Clean(m.Target)] = true
		if m.Kind == MountVolume {
			wanted = append(wanted, attachedVolume{name: m.Source, mount: m})
		}
	}
	var declared []string
	for target := range c.config.Config.Volumes {
		if target = path.Clean("/" + target); !taken[target] && target != "/" {
			declared = append(declared, target)
		}
	}
	slices.Sort(declared)
	for _, target := range declared {
		wanted = append(wanted, attachedVolume{mount: Mount{Kind: MountVolume, Target: target}})
	}
	if len(wanted) == 0 {
		return nil
	}
	for i := range wanted {
		if wanted[i].name != "" {
			c.record.Named = append(c.record.Named, wanted[i].name)
			continue
		}
		id, err := newID()
		if err != nil {
			return err
		}
		wanted[i].name = id
		c.record.Volumes = append(c.record.Volumes, id)
	}
	if err := c.record.write(c.dir.Path()); err != nil {
		return err
	}
	for _, v := range wanted {
		if err := c.attachVolume(ctx, v); err != nil {
			return fmt.Errorf("volume %s: %w", v.name, err)
		}
	}
	return nil
}

// fillingFile, beside a volume's files, says that they are not complete: the den
// that copied them from an image died or failed. The next one begins again.
const fillingFile = "filling"

func (c *container) attachVolume(ctx context.Context, v attachedVolume) error {
	st := c.engine.Store
	// Others that want the volume wait until it is filled.
	work, err := st.Work(ctx, "volume", st.EngineID()+"-"+v.name, nil)
	if err != nil {
		return err
	}
	defer work.Done()
	if work.Duplicate() {
		return fmt.Errorf("another den that does not answer is filling it; end that one: %w", errdefs.ErrUnavailable)
	}
	dir, hold, _, err := st.Volume(ctx, v.name, true)
	if err != nil {
		return err
	}
	v.dir, v.hold = dir, hold
	c.volumes = append(c.volumes, v)
	if v.mount.NoCopy {
		return nil
	}
	mark := filepath.Join(filepath.Dir(dir), fillingFile)
	if done, err := filled(dir, mark); done || err != nil {
		return err
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	if err := c.fill(ctx, dir, v.mount.Target); err != nil {
		return fmt.Errorf("copy %s of the image: %w", v.mount.Target, err)
	}
	if err := failpoint.Hit("engine.volume.filled"); err != nil {
		return err
	}
	return os.Remove(mark)
}

// filled says whether a volume has something in it, as docker decides whether to
// copy. What a den has left half done is removed.
func filled(dir, mark string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return false, err
	}
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	for _, e := range entries {
		if err := sys.RemoveTree(filepath.Join(dir, e.Name())); err != nil {
			return false, err
		}
	}
	return false, nil
}

// fill copies what the image has at target into a fresh volume, with owners,
// modes and extended attributes, as docker does.
func (c *container) fill(ctx context.Context, dir, target string) error {
	root, err := tree.Resolve(c.view, target)
	if errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := c.view.Lstat(root)
	if errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return layer.Create(ctx, dir, snapshot.Files(c.view, root), layer.UnpackOptions{InUserns: c.engine.InUserns, Recorded: c.engine.Recorded})
}
