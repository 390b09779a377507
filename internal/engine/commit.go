package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/store"
)

// CommitOptions say what image a container becomes.
type CommitOptions struct {
	// Name to give; empty leaves the image untagged.
	Name            string
	Author, Message string
	// Changes are Dockerfile instructions for the configuration.
	Changes []string
	// Pause holds the container while its files are read.
	Pause bool
	// Config, if set, wins over the container's where its fields are set.
	Config *dockerspec.DockerOCIImageConfig
}

// Commit makes an image of a container.
func (e *Engine) Commit(ctx context.Context, nameOrID string, o CommitOptions) (_ *image.Image, err error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	resume := func() error { return nil }
	if o.Pause {
		resume = l.hold(ctx)
	}
	k, err := l.look(ctx)
	if err != nil {
		return nil, errors.Join(err, resume())
	}
	defer func() { err = errors.Join(err, k.close()) }()
	written, err := e.layerOf(ctx, k)
	if err := errors.Join(err, resume()); err != nil {
		return nil, err
	}
	defer written.Close()
	config, err := k.c.committed(o)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	layers := append(append([]image.Layer{}, k.c.image.Layers...), image.Layer{
		DiffID: written.DiffID(), SizeBytes: written.Meta().SizeBytes, Created: &now,
	})
	img, err := image.Assemble(image.Result{Config: config, Base: k.c.image.Config, Layers: layers})
	if err != nil {
		return nil, err
	}
	b := image.Built{Images: []*image.Image{img}}
	if o.Name != "" {
		b.Names = []string{o.Name}
	}
	if img, err = e.Images.Commit(ctx, b); err != nil {
		return nil, err
	}
	l.tell("commit", map[string]string{"comment": o.Message, "imageID": string(img.ConfigDigest), "imageRef": o.Name})
	return img, nil
}

// hold pauses the container for a moment, if it runs and can be.
func (l *life) hold(ctx context.Context) (resume func() error) {
	r, err := l.running()
	if err != nil || l.snapshot().State == statePaused {
		return func() error { return nil }
	}
	p, ok := r.sb.(sandbox.Pauser)
	if !ok || p.Pause(ctx) != nil {
		return func() error { return nil }
	}
	return func() error { return p.Resume(context.WithoutCancel(ctx)) }
}

// layerOf makes a layer of what the container wrote.
func (e *Engine) layerOf(ctx context.Context, k *look) (*store.Layer, error) {
	read, write := io.Pipe()
	go func() {
		var err error
		if len(k.own) > 0 {
			_, err = layer.WriteTar(ctx, write, k.changes())
		} else {
			_, err = layer.WriteTar(ctx, write, func(func(layer.File, error) bool) {})
		}
		write.CloseWithError(err)
	}()
	made, err := e.Images.ImportLayer(ctx, read)
	read.CloseWithError(err)
	return made, err
}

// committed is the configuration of the image that the container becomes.
func (c *container) committed(o CommitOptions) ([]byte, error) {
	config, err := c.image.Parse()
	if err != nil {
		return nil, err
	}
	config.Config = c.effective()
	config.Config.Labels = maps.Clone(config.Config.Labels)
	if o.Config != nil {
		overlay(&config.Config, o.Config)
	}
	if err := image.ApplyChanges(config, o.Changes); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	config.Created = &now
	if o.Author != "" {
		config.Author = o.Author
	}
	config.History = append(config.History, oci.History{
		Created: &now, Author: o.Author, Comment: o.Message, CreatedBy: strings.Join(c.record.Command, " "),
	})
	return json.Marshal(config)
}

// overlay puts the fields of above that are set into c, as docker's commit does.
func overlay(c, above *dockerspec.DockerOCIImageConfig) {
	c.User, c.WorkingDir, c.StopSignal = first(above.User, c.User), first(above.WorkingDir, c.WorkingDir), first(above.StopSignal, c.StopSignal)
	c.Env = overlaid(append(append([]string{}, c.Env...), above.Env...))
	if len(above.Entrypoint) > 0 {
		c.Entrypoint = above.Entrypoint
	}
	if len(above.Cmd) > 0 {
		c.Cmd = above.Cmd
	}
	if above.Healthcheck != nil {
		c.Healthcheck = above.Healthcheck
	}
	c.Labels = merged(c.Labels, above.Labels)
	for port := range above.ExposedPorts {
		c.ExposedPorts = with(c.ExposedPorts, port)
	}
	for volume := range above.Volumes {
		c.Volumes = with(c.Volumes, volume)
	}
}

func with(set map[string]struct{}, key string) map[string]struct{} {
	out := map[string]struct{}{key: {}}
	maps.Copy(out, set)
	return out
}
