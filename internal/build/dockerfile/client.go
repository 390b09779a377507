package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/opencontainers/go-digest"

	denllb "den/internal/build/llb"
	"den/internal/oci"
	"den/internal/progress"
)

// builtin matches the frontend images whose work the built-in one does.
var builtin = regexp.MustCompile(`^docker\.io/docker/dockerfile(-upstream)?$`)

// client is the gateway as BuildKit's frontend wants it.
type client struct {
	req  Request
	gw   Gateway
	opts gwclient.BuildOpts

	expansions *expansions

	inputsOnce sync.Once
	inputs     map[string]llb.State
	inputsErr  error
}

var _ gwclient.Client = (*client)(nil)

func newClient(req Request, gw Gateway) *client {
	return &client{req: req, gw: gw, expansions: newExpansions(req.Options), opts: gwclient.BuildOpts{
		Opts:      req.Options,
		SessionID: req.SessionID,
		Product:   "den",
		Workers:   []gwclient.WorkerInfo{{ID: "den", Platforms: []oci.Platform{req.Platform}}},
		LLBCaps:   denllb.Caps(),
		Caps:      gatewayCaps(),
	}}
}

// gatewayCaps are all of the gateway's but containers outside of a definition,
// which no Dockerfile needs, and attestations.
func gatewayCaps() apicaps.CapSet {
	all := gwpb.Caps.All()
	for _, c := range all {
		lacking := []apicaps.CapID{gwpb.CapAttestations, gwpb.CapSourceMetaResolverImageAttestations, gwpb.CapSourceMetaResolverHTTPChecksumRequest}
		if strings.HasPrefix(c.ID, string(gwpb.CapGatewayExec)) || slices.Contains(lacking, apicaps.CapID(c.ID)) {
			c.Enabled = false
		}
	}
	return gwpb.Caps.CapSet(all)
}

func (c *client) BuildOpts() gwclient.BuildOpts { return c.opts }

func (c *client) Inputs(context.Context) (map[string]llb.State, error) {
	c.inputsOnce.Do(func() {
		c.inputs = make(map[string]llb.State, len(c.req.Inputs))
		for name, def := range c.req.Inputs {
			op, err := llb.NewDefinitionOp(def)
			if err != nil {
				c.inputsErr = fmt.Errorf("input %.80q: %w", name, err)
				return
			}
			c.inputs[name] = llb.NewState(op)
		}
	})
	return c.inputs, c.inputsErr
}

func (c *client) Solve(ctx context.Context, r gwclient.SolveRequest) (*gwclient.Result, error) {
	if r.Frontend != "" {
		return c.forward(ctx, r)
	}
	ref, err := c.gw.Solve(ctx, r.Definition)
	if err != nil {
		return nil, err
	}
	if r.Evaluate {
		if err := ref.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res := gwclient.NewResult()
	res.SetRef(&checkedRef{ref, c.dockerfile(), c.expansions})
	return res, nil
}

// dockerfile is the name that the frontend reads the Dockerfile by.
func (c *client) dockerfile() string {
	if name := c.req.Options["filename"]; name != "" {
		return name
	}
	return "Dockerfile"
}

// forward runs the frontend that a syntax line or BUILDKIT_SYNTAX names. The
// option "cmdline", which the frontend has set, keeps it from asking again.
func (c *client) forward(ctx context.Context, r gwclient.SolveRequest) (*gwclient.Result, error) {
	source := r.FrontendOpt["source"]
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return nil, fmt.Errorf("frontend %.200q: %w: %w", source, err, errdefs.ErrInvalidArgument)
	}
	if r.Frontend != "gateway.v0" || !builtin.MatchString(named.Name()) {
		return nil, fmt.Errorf("frontend %.200s: den has docker/dockerfile built in and does not run other frontends; remove the syntax line, or use docker/dockerfile: %w", source, errdefs.ErrNotImplemented)
	}
	req := c.req
	req.Options = r.FrontendOpt
	req.Inputs = r.FrontendInputs
	return builder.Build(ctx, newClient(req, c.gw))
}

func (c *client) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	r, err := c.gw.ResolveImage(ctx, ref, opt)
	if err == nil {
		err = c.expansions.image(ref, r.Config)
	}
	if err != nil {
		return "", "", nil, err
	}
	return r.Name, r.Digest, r.Config, nil
}

func (c *client) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	scheme, rest, _ := strings.Cut(op.GetIdentifier(), "://")
	if scheme != "docker-image" && scheme != "oci-layout" {
		return c.gw.ResolveSource(ctx, op, opt)
	}
	r, err := c.gw.ResolveImage(ctx, rest, opt)
	if err == nil {
		err = c.expansions.image(rest, r.Config)
	}
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{
		Op:    &pb.SourceOp{Identifier: scheme + "://" + r.Name, Attrs: op.Attrs},
		Image: &sourceresolver.ResolveImageResponse{Digest: r.Digest, Config: r.Config},
	}, nil
}

func (c *client) NewContainer(context.Context, gwclient.NewContainerRequest) (gwclient.Container, error) {
	return nil, errors.Join(errdefs.ErrNotImplemented, errors.New("den does not run containers for frontends"))
}

func (c *client) Warn(_ context.Context, dgst digest.Digest, msg string, o gwclient.WarnOpts) error {
	w := progress.Warning{Vertex: dgst, Level: o.Level, Short: []byte(msg), Detail: o.Detail, URL: o.URL}
	if o.SourceInfo != nil && len(o.Range) > 0 {
		w.Filename, w.Source = o.SourceInfo.Filename, o.SourceInfo.Data
		w.From, w.To = int(o.Range[0].GetStart().GetLine()), int(o.Range[0].GetEnd().GetLine())
	}
	c.gw.Warn(w)
	return nil
}
