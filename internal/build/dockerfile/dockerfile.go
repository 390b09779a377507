// Package dockerfile turns a Dockerfile into LLB.
//
// BuildKit's own Dockerfile frontend does it, in this process, as a client of
// a gateway: it calls back to read the Dockerfile and .dockerignore, to learn
// the configuration of base images, and to hand over the definitions that it
// wrote. The names of the options are the frontend's (frontend/dockerui and
// docs/reference.md in github.com/moby/buildkit).
//
// What the gateway announces decides what the frontend writes, so the
// announced capabilities are those of llb.Caps, and nothing that den cannot do
// is among them. A "# syntax=docker/dockerfile" line names the frontend that is
// built in; any other frontend image is refused.
package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/oci"
	"den/internal/progress"
)

// A Gateway is what the frontend asks of a build. It is used concurrently.
type Gateway interface {
	// Solve checks def and returns a reference to what it makes. Nothing is
	// executed before the reference is evaluated or read. The reference is
	// never nil.
	Solve(ctx context.Context, def *pb.Definition) (gwclient.Reference, error)
	// ResolveImage finds an image: its name pinned by digest, and its
	// configuration.
	ResolveImage(ctx context.Context, name string, o sourceresolver.Opt) (*Resolved, error)
	// ResolveSource describes a source that is not an image, such as the
	// commit of a git repository.
	ResolveSource(ctx context.Context, op *pb.SourceOp, o sourceresolver.Opt) (*sourceresolver.MetaResponse, error)
	// Warn takes a lint warning.
	Warn(w progress.Warning)
}

// Resolved is an image that was found.
type Resolved struct {
	// Name is canonical, with the digest if the image has one.
	Name   string
	Digest oci.Digest
	// Config is the raw configuration.
	Config []byte
}

// A Request is one run of the frontend.
type Request struct {
	// Options are the frontend's: "target", "build-arg:NAME", "platform", ...
	Options map[string]string
	// Inputs are definitions that contexts of the form "input:name" refer to.
	Inputs map[string]*pb.Definition
	// SessionID ends up in the sources that a client would send.
	SessionID string
	// Platform is that of the machine that builds (BUILDPLATFORM).
	Platform oci.Platform
}

// A Result is what the frontend made: images, or the answer of a sub-request.
type Result struct {
	// Images has one for each platform, in the order that was asked for.
	Images []Image
	// Index is set when the result is to be an index even if it has only one
	// image.
	Index bool
	// Call is the answer of a sub-request ("requestid"), else nil.
	Call *Call
}

// An Image is the result for one platform.
type Image struct {
	Platform oci.Platform
	// ID is the platform as a string, such as "linux/amd64".
	ID string
	// Ref is lazy.
	Ref gwclient.Reference
	// Config is the image's configuration without the layers that were built;
	// Base is that of the image it was built from, or nil.
	Config, Base []byte
	// Epoch is SOURCE_DATE_EPOCH, nil where it is not set.
	Epoch *time.Time
}

// Compile runs the frontend. Errors carry BuildKit's errdefs.Source, the place
// in the Dockerfile, where there is one.
func Compile(ctx context.Context, req Request, gw Gateway) (*Result, error) {
	// The frontend writes into its options.
	req.Options = maps.Clone(req.Options)
	if req.Options == nil {
		req.Options = map[string]string{}
	}
	res, err := builder.Build(ctx, newClient(req, gw))
	if err != nil {
		return nil, err
	}
	if dt, ok := res.Metadata["result.json"]; ok {
		c, err := newCall(dt, res.Metadata)
		return &Result{Call: c}, err
	}
	return collect(res)
}

func collect(res *gwclient.Result) (*Result, error) {
	var ps exptypes.Platforms
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterPlatformsKey], &ps); err != nil {
		return nil, fmt.Errorf("frontend: platforms: %w", err)
	}
	out := &Result{Index: res.Ref == nil}
	for _, p := range ps.Platforms {
		img := Image{Platform: p.Platform, ID: p.ID}
		suffix := ""
		if out.Index {
			suffix = "/" + p.ID
			img.Ref = res.Refs[p.ID]
		} else {
			img.Ref = res.Ref
		}
		if img.Ref == nil {
			return nil, fmt.Errorf("frontend: no result for %s", p.ID)
		}
		img.Ref = unwrap(img.Ref)
		img.Config = res.Metadata[exptypes.ExporterImageConfigKey+suffix]
		img.Base = res.Metadata[exptypes.ExporterImageBaseConfigKey+suffix]
		if v, ok := res.Metadata[commonexptypes.ExporterEpochKey+suffix]; ok {
			sec, err := strconv.ParseInt(string(v), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("frontend: SOURCE_DATE_EPOCH: %w", err)
			}
			t := time.Unix(sec, 0).UTC()
			img.Epoch = &t
		}
		out.Images = append(out.Images, img)
	}
	if len(out.Images) == 0 {
		return nil, errors.New("frontend: no result")
	}
	return out, nil
}
