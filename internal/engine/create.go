package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
	"den/internal/image"
	"den/internal/store"
	"den/internal/tree"
)

// Create makes a container that Start starts. A missing image is an error of class
// errdefs.ErrNotFound; nothing is pulled.
func (e *Engine) Create(ctx context.Context, req *CreateRequest) (Created, error) {
	e.serve()
	if err := e.settled(ctx); err != nil {
		return Created{}, err
	}
	r := *req
	var warnings []string
	if err := e.checkCreate(ctx, &r); err != nil {
		return Created{}, err
	}
	img, err := e.Images.Resolve(ctx, r.Image, image.ResolveOptions{Platform: r.Platform, Mode: image.ResolveLocal})
	if errdefs.IsNotFound(err) {
		return Created{}, notFound("No such image: %s", r.Image)
	}
	if err != nil {
		return Created{}, err
	}
	config, err := img.Parse()
	if err != nil {
		return Created{}, err
	}
	warnPlatform(img, &r.RunRequest, Streams{Warn: func(w string) { warnings = append(warnings, w) }})
	c := &container{engine: e, request: &r.RunRequest, more: &r, image: img, config: config}
	if len(command(c.request, config)) == 0 {
		return Created{}, invalid("no command specified")
	}
	if err := c.createResident(ctx); err != nil {
		return Created{}, errors.Join(err, c.finish(true))
	}
	id := c.record.ID
	if err := c.finish(false); err != nil {
		return Created{}, err
	}
	e.containerEvent(&c.record, "create", nil)
	return Created{ID: id, Warnings: warnings}, nil
}

func (c *container) createResident(ctx context.Context) (err error) {
	if c.trees, err = c.engine.Images.Trees(ctx, c.image.Layers, image.TreeOptions{}); err != nil {
		return err
	}
	if c.view, err = tree.Stack(c.dirs()); err != nil {
		return fmt.Errorf("read layers of %s: %w", c.image, err)
	}
	if _, err := c.lookupUser(first(c.request.User, c.config.Config.User)); err != nil {
		return err
	}
	if err := c.planVolumes(ctx); err != nil {
		return err
	}
	if err := c.registerResident(ctx); err != nil {
		return err
	}
	return c.makeVolumes(ctx)
}

// registerResident gives the container its directory, its roots, its name and its record.
func (c *container) registerResident(ctx context.Context) error {
	id, err := newID()
	if err != nil {
		return err
	}
	if c.dir, err = c.engine.Store.NewContainer(ctx, id); err != nil {
		return err
	}
	if err := failpoint.Hit("engine.create.roots"); err != nil {
		return err
	}
	if err := c.dir.SetRoots(store.Record{Layers: c.image.DiffIDs()}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.dir.Path(), exitFile), nil, 0o600); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if err := errors.Join(writeKept(c.dir, requestFile, c.more), writeKept(c.dir, imageFile, c.image)); err != nil {
		return err
	}
	name, err := c.engine.nameContainer(ctx, c.request.Name, id)
	if errdefs.IsAlreadyExists(err) {
		owner, _ := c.engine.Store.ContainerByName(c.request.Name)
		return &sentence{fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by container %q. "+
			"You have to remove (or rename) that container to be able to reuse that name.", c.request.Name, owner), errdefs.ErrAlreadyExists}
	}
	if err != nil {
		return err
	}
	c.record = newRecord(c, id, name)
	c.record.Resident = true
	if err := c.firstUpper(); err != nil {
		return err
	}
	c.record.Labels = merged(c.config.Config.Labels, c.request.Labels)
	for _, m := range c.request.Mounts {
		switch {
		case m.Kind == MountVolume && m.Anonymous:
			c.record.Volumes = append(c.record.Volumes, m.Source)
		case m.Kind == MountVolume:
			c.record.Named = append(c.record.Named, m.Source)
		}
	}
	if err := failpoint.Hit("engine.create.record"); err != nil {
		return err
	}
	return c.record.write(c.dir.Path())
}

func merged(below, above map[string]string) map[string]string {
	if len(below)+len(above) == 0 {
		return nil
	}
	m := map[string]string{}
	maps.Copy(m, below)
	maps.Copy(m, above)
	return m
}

// planVolumes gives each volume of the container a name: those that were asked for, those
// of other containers, and the image's own.
func (c *container) planVolumes(ctx context.Context) error {
	mounts := slices.Clone(c.request.Mounts)
	taken := map[string]bool{}
	for _, m := range mounts {
		taken[path.Clean(m.Target)] = true
	}
	for _, from := range c.more.VolumesFrom {
		more, err := c.engine.mountsOf(ctx, from)
		if err != nil {
			return err
		}
		for _, m := range more {
			if !taken[path.Clean(m.Target)] {
				taken[path.Clean(m.Target)] = true
				mounts = append(mounts, m)
			}
		}
	}
	for _, target := range slices.Sorted(maps.Keys(c.config.Config.Volumes)) {
		if target = path.Clean("/" + target); !taken[target] && target != "/" {
			mounts = append(mounts, Mount{Kind: MountVolume, Target: target})
		}
	}
	for i := range mounts {
		if m := &mounts[i]; m.Kind == MountVolume && m.Source == "" {
			id, err := newID()
			if err != nil {
				return err
			}
			m.Source, m.Anonymous = id, true
		}
	}
	c.request.Mounts = mounts
	return nil
}

// makeVolumes makes the volumes that are missing and fills them from the image.
func (c *container) makeVolumes(ctx context.Context) error {
	for _, m := range c.request.Mounts {
		if m.Kind != MountVolume {
			continue
		}
		meta := volumeMeta{Created: time.Now().UTC(), Anonymous: m.Anonymous, Labels: m.Labels, Options: m.DriverOptions}
		fresh, err := c.engine.makeVolume(ctx, m.Source, meta)
		if err != nil {
			return err
		}
		if err := c.attachVolume(ctx, attachedVolume{name: m.Source, mount: m}); err != nil {
			return fmt.Errorf("volume %s: %w", m.Source, err)
		}
		if fresh {
			c.engine.volumeEvent(m.Source, "create", nil)
		}
	}
	return nil
}

// openVolumes opens the volumes of a container that starts.
func (c *container) openVolumes(ctx context.Context) error {
	for _, m := range c.request.Mounts {
		if m.Kind != MountVolume {
			continue
		}
		m.NoCopy = true // it was filled when the container was created
		if err := c.attachVolume(ctx, attachedVolume{name: m.Source, mount: m}); err != nil {
			return fmt.Errorf("volume %s: %w", m.Source, err)
		}
	}
	return nil
}

// mountsOf are the volumes and binds of another container, as of --volumes-from.
func (e *Engine) mountsOf(ctx context.Context, spec string) ([]Mount, error) {
	name, mode := cutMode(spec)
	if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
		return nil, invalid("invalid mode: %s", mode)
	}
	l, err := e.mine(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, noContainer(name)
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Mount
	for _, m := range l.request.Mounts {
		if m.Kind == MountTmpfs {
			continue
		}
		m.ReadOnly = m.ReadOnly || mode == "ro"
		m.Anonymous = false // it goes with the container that it came with
		out = append(out, m)
	}
	return out, nil
}
