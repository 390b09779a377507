package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

// A layoutOp is the layers of an image in an OCI image layout, a directory
// that the user named.
type layoutOp struct {
	env    *Env
	v      *llb.Vertex
	dir    string
	digest oci.Digest
	attrs  imageAttrs

	image *image.Image // after CacheMap
}

func newLayoutOp(env *Env, v *llb.Vertex, name string) (solver.Op, error) {
	a, err := parseImageAttrs(env, v)
	if err != nil {
		return nil, fmt.Errorf("oci-layout %s: %w", name, err)
	}
	repo, d, ok := strings.Cut(name, "@")
	if !ok {
		return nil, fmt.Errorf("oci-layout %s: no digest: %w", name, errdefs.ErrInvalidArgument)
	}
	if err := oci.CheckDigest(oci.Digest(d)); err != nil {
		return nil, fmt.Errorf("oci-layout %s: %w", name, err)
	}
	id := v.Op.GetSource().GetAttrs()[pb.AttrOCILayoutStoreID]
	dir := env.Layouts[id]
	if dir == "" {
		dir = env.Layouts[repo]
	}
	if dir == "" {
		return nil, fmt.Errorf("oci-layout %s: the build has no such layout: %w", name, errdefs.ErrNotFound)
	}
	return &layoutOp{env: env, v: v, dir: dir, digest: oci.Digest(d), attrs: a}, nil
}

// CacheMap reads the manifest and the configuration; the key is that of the
// same image from a registry.
func (o *layoutOp) CacheMap(context.Context, progress.Sink) (*solver.CacheMap, error) {
	img, err := ReadLayout(o.dir, o.digest, o.attrs.platform)
	if err != nil {
		return nil, err
	}
	o.image = img
	key, err := imageKey(img, o.attrs)
	if err != nil {
		return nil, err
	}
	return &solver.CacheMap{Digest: sourceKey(string(key)), NoRecord: true}, nil
}

// Exec brings the blobs of layers that the store lacks.
func (o *layoutOp) Exec(ctx context.Context, _ []solver.Result, sink progress.Sink) (_ []solver.Result, err error) {
	root, err := os.OpenRoot(o.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	layers := o.image.Layers
	if o.attrs.layers >= 0 {
		layers = layers[:o.attrs.layers]
	}
	r := o.env.newRef(layers, o.v.Digest)
	r.sink = sink
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for i, l := range layers {
		ls, err := leaseOf(ctx, o.env.Store, l)
		if errdefs.IsNotFound(err) {
			ls, err = ingestLayer(ctx, o.env.Store, root, *l.Blob)
		}
		if err != nil {
			return nil, fmt.Errorf("oci-layout %s: layer %s: %w", o.dir, l.DiffID, err)
		}
		r.leases[i] = ls
	}
	return []solver.Result{r}, nil
}

func ingestLayer(ctx context.Context, st *store.Store, root *os.Root, d oci.Descriptor) (*lease, error) {
	blob, err := st.Ingest(ctx, store.Ingest{
		Digest: d.Digest, SizeBytes: d.Size,
		Fetch: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			f, err := root.Open(layoutBlob(d.Digest))
			if err != nil {
				return nil, err
			}
			if _, err := f.Seek(offset, io.SeekStart); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			return f, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return newLease(nil, blob), nil
}

func layoutBlob(d oci.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// ReadLayout reads an image of an OCI image layout: manifest and configuration
// are checked against their digests, blobs are not touched. d is a manifest or
// an index, of which p chooses the manifest.
func ReadLayout(dir string, d oci.Digest, p oci.Platform) (*image.Image, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	img, err := readLayout(root, d, p)
	if err != nil {
		return nil, fmt.Errorf("oci-layout %s: %s: %w", dir, d, err)
	}
	return img, nil
}

// maxIndexDepth is how many indexes may lie above a manifest.
const maxIndexDepth = 4

func readLayout(root *os.Root, d oci.Digest, p oci.Platform) (*image.Image, error) {
	for range maxIndexDepth {
		raw, err := readLayoutBlob(root, d, oci.MaxManifestBytes)
		if err != nil {
			return nil, err
		}
		// A digest alone does not say what it is of.
		mediaType, err := oci.DetectMediaType(raw, "")
		if err != nil {
			return nil, err
		}
		if !oci.IsIndex(mediaType) {
			return readLayoutImage(root, d, mediaType, raw)
		}
		index, err := oci.ParseIndex(raw, mediaType)
		if err != nil {
			return nil, err
		}
		if d, err = chooseManifest(index.Manifests, p); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("indexes in indexes: %w", errdefs.ErrInvalidArgument)
}

// chooseManifest finds the best manifest for a platform.
func chooseManifest(manifests []oci.Descriptor, p oci.Platform) (oci.Digest, error) {
	match := platforms.Only(platforms.Normalize(p))
	var best *oci.Descriptor
	for i, m := range manifests {
		if m.Platform == nil || !match.Match(*m.Platform) {
			continue
		}
		if best == nil || match.Less(*m.Platform, *best.Platform) {
			best = &manifests[i]
		}
	}
	if best == nil && len(manifests) == 1 && manifests[0].Platform == nil {
		best = &manifests[0]
	}
	if best == nil {
		return "", fmt.Errorf("no manifest for %s: %w", platforms.Format(p), errdefs.ErrNotFound)
	}
	return best.Digest, oci.CheckDigest(best.Digest)
}

func readLayoutImage(root *os.Root, d oci.Digest, mediaType string, raw []byte) (*image.Image, error) {
	m, err := oci.ParseManifest(raw, mediaType)
	if err != nil {
		return nil, err
	}
	config, err := readLayoutBlob(root, m.Config.Digest, oci.MaxConfigBytes)
	if err != nil {
		return nil, err
	}
	var c oci.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest has %d layers, its configuration names %d: %w", len(m.Layers), len(c.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	img := &image.Image{
		Config: config, ConfigDigest: m.Config.Digest, Platform: c.Platform,
		Manifest: &oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))},
	}
	for i := range m.Layers {
		if err := oci.CheckDigest(c.RootFS.DiffIDs[i]); err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, image.Layer{DiffID: c.RootFS.DiffIDs[i], Blob: &m.Layers[i]})
	}
	return img, nil
}

// readLayoutBlob reads a small blob and checks it.
func readLayoutBlob(root *os.Root, d oci.Digest, limit int64) ([]byte, error) {
	if err := oci.CheckDigest(d); err != nil {
		return nil, err
	}
	f, err := root.Open(layoutBlob(d))
	if err != nil {
		if os.IsNotExist(err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		return nil, err
	}
	defer f.Close()
	var b strings.Builder
	got, _, err := oci.Copy(&b, &boundedReader{r: f, left: limit, name: string(d)})
	if err != nil {
		return nil, err
	}
	if got != d {
		return nil, &oci.DigestError{Want: d, Got: got}
	}
	return []byte(b.String()), nil
}
