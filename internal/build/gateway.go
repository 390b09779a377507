package build

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/build/dockerfile"
	"den/internal/build/llb"
	"den/internal/build/ops"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// gateway answers the frontend of one build. All that it solves shares one
// solver, so that equal steps of several platforms and calls run once.
type gateway struct {
	env     *ops.Env
	solver  *solver.Solver
	resolve solver.Resolver[*llb.Vertex]
	sink    progress.Sink

	mu       sync.Mutex
	vertices map[vertexKey]*solver.Vertex
}

type vertexKey struct {
	digest oci.Digest
	ignore bool
}

var _ dockerfile.Gateway = (*gateway)(nil)

func newGateway(env *ops.Env, p *plan, slots int) *gateway {
	return &gateway{
		env:      env,
		solver:   solver.New(ops.NewCache(env.Store, env.Images, p.scopes...), solver.Options{Slots: slots, Sink: p.sink}),
		resolve:  ops.NewResolver(env),
		sink:     p.sink,
		vertices: map[vertexKey]*solver.Vertex{},
	}
}

// Solve checks def; nothing is executed before its reference is used.
func (g *gateway) Solve(_ context.Context, def *pb.Definition) (gwclient.Reference, error) {
	e, err := llb.Decode(def)
	if err != nil {
		return nil, err
	}
	r := &ref{gateway: g, def: def}
	if e.Vertex != nil {
		r.edge = &solver.Edge{Vertex: g.vertex(e.Vertex), Index: e.Index}
	}
	return r, nil
}

// vertex gives the solver its view of a vertex. Equal vertices of several
// definitions are one.
func (g *gateway) vertex(v *llb.Vertex) *solver.Vertex {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.convert(v)
}

func (g *gateway) convert(v *llb.Vertex) *solver.Vertex {
	key := vertexKey{v.Digest, v.Meta.IgnoreCache}
	if out := g.vertices[key]; out != nil {
		return out
	}
	out := &solver.Vertex{
		Digest:      v.Digest,
		Name:        v.Name,
		Group:       v.Meta.GetProgressGroup().GetId(),
		IgnoreCache: v.Meta.IgnoreCache,
		Op:          func() (solver.Op, error) { return g.resolve(v) },
	}
	for _, in := range v.Inputs {
		out.Inputs = append(out.Inputs, solver.Edge{Vertex: g.convert(in.Vertex), Index: in.Index})
	}
	g.vertices[key] = out
	return out
}

// ResolveImage finds an image's configuration and pins its name.
func (g *gateway) ResolveImage(ctx context.Context, name string, o sourceresolver.Opt) (*dockerfile.Resolved, error) {
	var out *dockerfile.Resolved
	title := o.LogName
	if title == "" {
		title = "[internal] load metadata for " + name
	}
	err := g.inVertex(title, title+resolvePlatform(o), func(v oci.Digest) (err error) {
		if o.OCILayoutOpt != nil {
			out, err = g.resolveLayout(name, o.OCILayoutOpt)
			return err
		}
		out, err = g.resolveImage(ctx, name, o.ImageOpt, v)
		return err
	})
	return out, err
}

func resolvePlatform(o sourceresolver.Opt) string {
	if o.ImageOpt != nil && o.ImageOpt.Platform != nil {
		return " " + platforms.FormatAll(*o.ImageOpt.Platform)
	}
	return ""
}

func (g *gateway) resolveImage(ctx context.Context, name string, o *sourceresolver.ResolveImageOpt, v oci.Digest) (*dockerfile.Resolved, error) {
	opt := image.ResolveOptions{Sink: g.sink, Vertex: v}
	if o != nil {
		opt.Platform = o.Platform
		if o.ResolveMode == pb.AttrImageResolveModeForcePull {
			opt.Mode = image.ResolvePull
		}
	}
	img, err := g.env.Images.Resolve(ctx, name, opt)
	if err != nil {
		return nil, err
	}
	return &dockerfile.Resolved{Name: name, Digest: pinned(name, img), Config: img.Config}, nil
}

func (g *gateway) resolveLayout(name string, o *sourceresolver.ResolveOCILayoutOpt) (*dockerfile.Resolved, error) {
	dir, ok := g.env.Layouts[o.Store.StoreID]
	if !ok {
		return nil, fmt.Errorf("oci-layout %q: the build has no such layout: %w", o.Store.StoreID, errdefs.ErrNotFound)
	}
	_, d, _ := strings.Cut(name, "@")
	p := g.env.Platform
	if o.Platform != nil {
		p = *o.Platform
	}
	img, err := ops.ReadLayout(dir, oci.Digest(d), p)
	if err != nil {
		return nil, err
	}
	return &dockerfile.Resolved{Name: name, Digest: oci.Digest(d), Config: img.Config}, nil
}

// pinned is the digest that the name stands for: what the name itself says, or
// what the image was pulled by. An image that was built here has none.
func pinned(name string, img *image.Image) oci.Digest {
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		if d, ok := named.(reference.Digested); ok {
			return d.Digest()
		}
	}
	switch {
	case img.Target != nil:
		return img.Target.Digest
	case img.Manifest != nil:
		return img.Manifest.Digest
	}
	return ""
}

// ResolveSource describes sources for SOURCE_DATE_EPOCH=context.
func (g *gateway) ResolveSource(ctx context.Context, op *pb.SourceOp, o sourceresolver.Opt) (out *sourceresolver.MetaResponse, err error) {
	title := o.LogName
	if title == "" {
		title = "[internal] resolve metadata of " + op.GetIdentifier()
	}
	err = g.inVertex(title, title+op.GetIdentifier(), func(v oci.Digest) error {
		out, err = ops.SourceMeta(ctx, g.env, op, v, g.sink)
		return err
	})
	return out, err
}

// Warn shows a lint warning.
func (g *gateway) Warn(w progress.Warning) { g.sink.Event(progress.Event{Warning: &w}) }

// inVertex shows work that is no operation as a vertex of its own.
func (g *gateway) inVertex(name, id string, work func(oci.Digest) error) error {
	return inVertex(g.sink, name, id, work)
}

func inVertex(sink progress.Sink, name, id string, work func(oci.Digest) error) error {
	now := time.Now()
	v := progress.Vertex{Digest: digest.FromString(id), Name: name, Started: &now}
	first := v
	sink.Event(progress.Event{Vertex: &first})
	err := work(v.Digest)
	end := time.Now()
	v.Completed = &end
	if err != nil {
		v.Error = err.Error()
	}
	sink.Event(progress.Event{Vertex: &v})
	return err
}

// withSources adds the places in the Dockerfile that the failed vertex came
// from, so that they can be shown.
func withSources(def *pb.Definition, err error) error {
	var v *bkerrdefs.VertexError
	if err == nil || !errors.As(err, &v) || len(bkerrdefs.Sources(err)) > 0 {
		return err
	}
	src := def.GetSource()
	for _, loc := range src.GetLocations()[v.Digest].GetLocations() {
		err = bkerrdefs.WithSource(err, &bkerrdefs.Source{Info: src.Infos[loc.SourceIndex], Ranges: loc.Ranges})
	}
	return err
}

// state makes a definition usable as the input of another.
func state(def *pb.Definition) (bkllb.State, error) {
	if def == nil || len(def.Def) == 0 {
		return bkllb.Scratch(), nil
	}
	op, err := bkllb.NewDefinitionOp(def)
	if err != nil {
		return bkllb.State{}, err
	}
	return bkllb.NewState(op), nil
}
