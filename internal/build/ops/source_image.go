package ops

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// An imageOp is the layers of an image, by name. The name was pinned to a
// digest by the frontend, as a rule; the layers are fetched when their files
// are needed.
type imageOp struct {
	env   *Env
	v     *llb.Vertex
	name  string
	attrs imageAttrs

	image *image.Image // after CacheMap
}

type imageAttrs struct {
	platform oci.Platform
	mode     image.ResolveMode
	checksum oci.Digest
	layers   int // how many to take from the bottom; -1 is all
}

func newImageOp(env *Env, v *llb.Vertex, name string) (solver.Op, error) {
	a, err := parseImageAttrs(env, v)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return &imageOp{env: env, v: v, name: name, attrs: a}, nil
}

func parseImageAttrs(env *Env, v *llb.Vertex) (imageAttrs, error) {
	a := imageAttrs{platform: platforms.Normalize(env.platformOf(v.Op.Platform)), layers: -1}
	for k, val := range v.Op.GetSource().GetAttrs() {
		switch k {
		case pb.AttrImageResolveMode:
			switch val {
			case pb.AttrImageResolveModeDefault, pb.AttrImageResolveModePreferLocal:
				a.mode = image.ResolveDefault
			case pb.AttrImageResolveModeForcePull:
				a.mode = image.ResolvePull
			default:
				return a, fmt.Errorf("resolve mode %q: %w", val, errdefs.ErrInvalidArgument)
			}
		case pb.AttrImageChecksum:
			a.checksum = oci.Digest(val)
			if err := oci.CheckDigest(a.checksum); err != nil {
				return a, err
			}
		case pb.AttrImageLayerLimit, pb.AttrOCILayoutLayerLimit:
			n, err := strconv.Atoi(val)
			if err != nil || n < 1 {
				return a, fmt.Errorf("layer limit %q: %w", val, errdefs.ErrInvalidArgument)
			}
			a.layers = n
		case pb.AttrImageRecordType, pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID:
			// Bookkeeping of BuildKit's own store; the store id is read elsewhere.
		default:
			return a, fmt.Errorf("attribute %q: %w", k, errdefs.ErrNotImplemented)
		}
	}
	return a, nil
}

// CacheMap resolves the name. The key is the manifest, not the diffIDs that its
// configuration claims: those are not checked before the layers are unpacked.
func (o *imageOp) CacheMap(ctx context.Context, sink progress.Sink) (*solver.CacheMap, error) {
	img, err := o.env.Images.Resolve(ctx, o.name, image.ResolveOptions{
		Platform: &o.attrs.platform, Mode: o.attrs.mode, Sink: sink, Vertex: o.v.Digest,
	})
	if err != nil {
		return nil, err
	}
	o.image = img
	key, err := imageKey(img, o.attrs)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", o.name, err)
	}
	return &solver.CacheMap{Digest: sourceKey(string(key)), NoRecord: true}, nil
}

// imageKey is BuildKit's key of an image (source/containerimage,
// mainManifestKey), of the platform's manifest even where the name stands for
// an index: what other platforms it lists does not matter. An image that was
// built here and never exported has no manifest yet; its configuration, which
// names its layers by verified diffIDs, stands for it.
func imageKey(img *image.Image, a imageAttrs) (oci.Digest, error) {
	d := img.ConfigDigest
	if img.Manifest != nil {
		d = img.Manifest.Digest
	}
	if want := a.checksum; want != "" && d != want && (img.Target == nil || img.Target.Digest != want) {
		return "", fmt.Errorf("image digest %s does not match expected checksum %s: %w", d, want, errdefs.ErrFailedPrecondition)
	}
	var limit *int
	if a.layers >= 0 {
		if limit = &a.layers; a.layers > len(img.Layers) {
			return "", fmt.Errorf("layer limit %d is greater than the number of layers in the image %d: %w", a.layers, len(img.Layers), errdefs.ErrInvalidArgument)
		}
	}
	p := a.platform
	return jsonDigest(struct {
		Digest     oci.Digest
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
		Limit      *int     `json:",omitempty"`
	}{d, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures, limit})
}

// Unseen says that the image's first layer was never unpacked here, after CacheMap.
func (o *imageOp) Unseen(ctx context.Context) bool {
	if o.image == nil || len(o.image.Layers) == 0 {
		return false
	}
	l, err := o.env.Store.Layer(ctx, o.image.Layers[0].DiffID)
	if errdefs.IsNotFound(err) {
		l, err = o.env.Store.KinLayer(ctx, o.image.Layers[0].DiffID)
	}
	if err == nil {
		_ = l.Close()
	}
	return errdefs.IsNotFound(err)
}

// Exec returns the layers, of which none is fetched yet.
func (o *imageOp) Exec(ctx context.Context, _ []solver.Result, sink progress.Sink) ([]solver.Result, error) {
	r, err := o.env.imageRef(ctx, o.image, o.attrs, o.v.Digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", o.name, err)
	}
	r.sink = sink
	return []solver.Result{r}, nil
}

func (e *Env) imageRef(ctx context.Context, img *image.Image, a imageAttrs, vertex oci.Digest) (*Ref, error) {
	layers := img.Layers
	if a.layers >= 0 {
		layers = layers[:a.layers]
	}
	r := e.newRef(layers, vertex)
	if err := r.lease(ctx); err != nil {
		return nil, err
	}
	return r, nil
}
