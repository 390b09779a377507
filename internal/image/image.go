// Package image turns names and manifests into blobs and trees, and back.
//
// A name in the store says which image it stands for: the raw configuration,
// and for each layer its diffID and where its blob can be had. Trees are made
// from blobs when somebody needs files; blobs and manifests are made from
// trees when somebody needs bytes for a registry or an archive, once. Rules
// that make it safe:
//
//   - What comes from a registry or an archive is hostile: documents are
//     bounded in size and count, blobs are checked against their digest, and
//     a tree is published only under the diffID that its own bytes have.
//   - A reference is written by somebody who holds leases on what it names.
//   - A missing tree or blob is not an error as long as the other can still
//     be had: each is made from the other, or fetched again.
//
// Names live in two places: those of this engine, and those of pulled images,
// which all engines of a store share. A lookup falls through from the first
// to the second. Formats: OCI image-spec v1.1, distribution-spec v1.1, the
// Docker image manifest v2 schema 2 and `docker save` archives.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"den/internal/oci"
	"den/internal/progress"
	"den/internal/registry"
	"den/internal/store"
)

// Layer is one layer of an image: what it is and where its bytes can be had.
type Layer struct {
	DiffID oci.Digest `json:"diffID"`
	// Blob is the layer as a registry or an archive has it, compressed or
	// not; nil for a layer that was built here and never exported.
	Blob *oci.Descriptor `json:"blob,omitempty"`
	// Repo is a repository where Blob can be fetched or mounted from
	// ("docker.io/library/debian"); empty if it is nowhere but here.
	Repo string `json:"repo,omitempty"`
	// SizeBytes is the length of the uncompressed tar, 0 where unknown.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// Created is when a build made the layer. It fills the gaps in the
	// history of the image's configuration, so whoever caches a layer
	// keeps it, or the same build gets another configuration each time.
	Created *time.Time `json:"created,omitempty"`
}

// Image is an image for one platform: its configuration and layers, resolved,
// whether or not a byte of the layers is here.
type Image struct {
	// Name is the canonical reference it was found under, such as
	// "docker.io/library/debian:bookworm", or empty.
	Name string `json:"-"`
	// Config is the raw configuration and ConfigDigest its digest, which
	// Docker shows as the image ID.
	Config       []byte     `json:"config"`
	ConfigDigest oci.Digest `json:"configDigest"`
	// Layers, bottom first.
	Layers []Layer `json:"layers"`
	// Manifest describes the platform's manifest: known when pulled, loaded
	// or once exported.
	Manifest *oci.Descriptor `json:"manifest,omitempty"`
	// Target describes what the name stands for in its registry: an index,
	// or Manifest itself. Nil while Manifest is.
	Target   *oci.Descriptor `json:"-"`
	Platform oci.Platform    `json:"platform"`
	// Annotations go into the manifest when it is made.
	Annotations map[string]string `json:"annotations,omitempty"`
	// DescriptorAnnotations go into the manifest's descriptor: in an index, an
	// OCI layout.
	DescriptorAnnotations map[string]string `json:"descriptorAnnotations,omitempty"`
}

// Parse decodes the image's configuration.
func (i *Image) Parse() (*oci.Image, error) {
	var c oci.Image
	if err := json.Unmarshal(i.Config, &c); err != nil {
		return nil, fmt.Errorf("image %s: configuration: %w", i, err)
	}
	return &c, nil
}

// DiffIDs lists the layers' diffIDs, bottom first.
func (i *Image) DiffIDs() []oci.Digest {
	ids := make([]oci.Digest, len(i.Layers))
	for n, l := range i.Layers {
		ids[n] = l.DiffID
	}
	return ids
}

// String names the image for a person.
func (i *Image) String() string {
	if i.Name != "" {
		return familiar(i.Name)
	}
	return string(i.ConfigDigest)
}

// Options says how Images works. The zero value is good.
type Options struct {
	// Platform is what an unqualified name means; zero is this machine's.
	Platform oci.Platform
	// InUserns is set inside a user namespace, where device nodes of a layer
	// are recorded instead of made.
	InUserns bool
	// NoTrees is why no trees can be made: then Pull and Load keep images as blobs,
	// and what needs a tree fails with it. Nil where they can.
	NoTrees error
	// Parallel limits how many layers are transferred or unpacked at a time;
	// 0 is 4.
	Parallel int
	// InUse names the containers that use the image, so that it is not
	// removed under them. Nil: none are known.
	InUse func(configDigest oci.Digest) []string
	// Version of den, for the history of imported images. May be empty.
	Version string
}

// ResolveMode says where Resolve looks.
type ResolveMode int

const (
	// ResolveDefault takes what is here, else asks the registry.
	ResolveDefault ResolveMode = iota
	// ResolvePull asks the registry what the name stands for now.
	ResolvePull
	// ResolveLocal takes only what is here.
	ResolveLocal
)

// ResolveOptions refine Resolve.
type ResolveOptions struct {
	// Platform to choose from an index; nil is the default platform, and
	// for a local image of a single platform whatever that has.
	Platform *oci.Platform
	Mode     ResolveMode
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// TreeOptions refine Trees.
type TreeOptions struct {
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// Images knows the images of a store. It is safe for concurrent use.
type Images struct {
	st  *store.Store
	reg *registry.Client
	o   Options
	// slots bound the layers under way, cpus those that are compressed. They
	// are taken after a lock of the store, never before one, so that a
	// holder always gets on.
	slots, cpus chan struct{}
}

// New returns the images of st. reg is asked for what is not there; nil for
// never.
func New(st *store.Store, reg *registry.Client, o Options) *Images {
	o.Platform = normalized(o.Platform)
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	return &Images{
		st: st, reg: reg, o: o,
		slots: make(chan struct{}, o.Parallel),
		// Each compressor keeps some 10 MiB: many cores must not mean much memory.
		cpus: make(chan struct{}, min(8, max(2, runtime.GOMAXPROCS(0)))),
	}
}

// take waits for a place in slots; the caller calls the result to leave it.
func take(ctx context.Context, slots chan struct{}) (func(), error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
