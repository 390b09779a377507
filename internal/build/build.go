// Package build makes images out of Dockerfiles: the whole of `den build`.
//
// A Request says what a person typed. The Dockerfile is compiled by package
// dockerfile, which asks this package back through a gateway; what it needs is
// solved by package solver with the operations of package ops; the results are
// named, pushed or written by package image.
//
// Rules: everything a command line can get wrong is found before anything is
// read or executed; an operation is reached only through the solver, so that
// equal steps run once; secrets, agents and proxies are values that pass
// through to steps and are kept nowhere.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"golang.org/x/sync/errgroup"

	"den/internal/build/dockerfile"
	"den/internal/build/ops"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

// sessionID stands in sources for BuildKit's session with its client. There is
// none, and keys do not contain it.
const sessionID = "den"

// Options are what a Builder works with. Store and Images are needed.
type Options struct {
	Store  *store.Store
	Images *image.Images
	// Runner chooses how steps are run. It is called when the first one is,
	// and again after an error. Nil refuses RUN.
	Runner func(context.Context) (*Runner, error)
	// Emulators is ops.Env's.
	Emulators func(context.Context) error
	// InUserns says that den runs in its own user namespace.
	InUserns bool
	// Recorded says that owners in cache mounts are recorded; see ops.Env.
	Recorded bool
	// Platform is that of the machine; zero finds out.
	Platform oci.Platform
	// HostGateway is what host-gateway stands for in --add-host; zero is the
	// loopback, which steps share with den.
	HostGateway netip.Addr
	// CgroupParent is the cgroup below which steps run.
	CgroupParent string
	// ResolvConf is the steps' /etc/resolv.conf; nil copies den's.
	ResolvConf []byte
	// Transport fetches http and git sources; nil is http.DefaultTransport.
	Transport http.RoundTripper
	// Slots is how many steps run at once; 0 chooses.
	Slots int
}

// A Builder builds. It is safe for concurrent use.
type Builder struct {
	o      Options
	runner *lazyRunner
}

// New returns a Builder.
func New(o Options) *Builder {
	if o.Platform.OS == "" {
		o.Platform = platforms.DefaultSpec()
	}
	o.Platform = platforms.Normalize(o.Platform)
	if o.Runner == nil {
		o.Runner = func(context.Context) (*Runner, error) {
			return nil, fmt.Errorf("no way to run commands: %w", errdefs.ErrNotImplemented)
		}
	}
	return &Builder{o: o, runner: &lazyRunner{choose: o.Runner}}
}

// A Response is what came out.
type Response struct {
	// ImageID is what --iidfile and --quiet show: the digest of the
	// configuration, or of what was pushed if it is several images.
	ImageID oci.Digest
	// Names are the image's canonical names.
	Names []string
	// Metadata is what --metadata-file holds.
	Metadata map[string]any
	// Call is the answer of a sub-request instead of an image.
	Call *Call
}

// A Call is the answer to Request.Call.
type Call struct {
	answer             *dockerfile.Call
	format, dockerfile string
}

// Print writes the answer. The status is the exit code it asks for; an error
// in the Dockerfile is returned as text with its source.
func (c *Call) Print(w io.Writer) (status int, err error) {
	return c.answer.Status, c.answer.Print(w, c.format, c.dockerfile)
}

// A plan is a request that was understood.
type plan struct {
	*Request
	opts        map[string]string
	outputs     []output
	annotations *annotations
	secrets     *secretStore
	ssh         sshAgents
	allow       []string
	sink        progress.Sink
	scopes      []string
}

// parse understands a request without reading anything but docker's
// configuration. Errors are errdefs.ErrInvalidArgument.
func (b *Builder) parse(r *Request) (*plan, error) {
	p := &plan{Request: r, sink: r.Sink}
	if p.sink == nil {
		p.sink = progress.Discard
	}
	var err error
	if p.opts, err = b.frontendOptions(r); err != nil {
		return nil, err
	}
	if p.outputs, err = parseOutputs(r); err != nil {
		return nil, err
	}
	if p.annotations, err = parseAnnotations(r.Annotations); err != nil {
		return nil, err
	}
	if p.secrets, err = parseSecrets(r); err != nil {
		return nil, err
	}
	if p.ssh, err = parseSSH(r); err != nil {
		return nil, err
	}
	if p.allow, err = entitlements(r); err != nil {
		return nil, err
	}
	for _, text := range r.CacheScopes {
		scope, err := store.ParseScope(text)
		if err != nil {
			return nil, err
		}
		p.scopes = append(p.scopes, scope)
	}
	for _, tag := range r.Tags {
		if ref, err := oci.ParseReference(tag); err != nil || ref.Digest != "" {
			return nil, invalid("invalid tag %q: invalid reference format", tag)
		}
	}
	return p, nil
}

// Solve builds what r asks for. A failed step's error carries BuildKit's
// errdefs.VertexError and, where it is known, errdefs.Source: the place in the
// Dockerfile.
func (b *Builder) Solve(ctx context.Context, r Request) (_ *Response, err error) {
	p, err := b.parse(&r)
	if err != nil {
		return nil, err
	}
	in, err := b.open(ctx, &r)
	if err != nil {
		return nil, err
	}
	env := b.env(p, in)
	g := newGateway(env, p, b.o.Slots)
	defer func() { err = errors.Join(err, g.solver.Close(), in.Close()) }()
	maps.Copy(p.opts, in.opts)
	res, err := dockerfile.Compile(ctx, dockerfile.Request{
		Options: p.opts, SessionID: sessionID, Platform: b.o.Platform,
	}, g)
	if err != nil {
		return nil, err
	}
	if res.Call != nil {
		_, format, err := parseCall(r.Call)
		return &Response{Call: &Call{answer: res.Call, format: format, dockerfile: in.dockerfile}}, err
	}
	if env.SourceDateEpoch == nil { // the frontend may have taken it from a context; no step has run yet
		env.SourceDateEpoch = res.Images[0].Epoch
	}
	results, err := evaluate(ctx, res)
	if err != nil {
		return nil, err
	}
	out, err := b.export(ctx, p, res.Images, results)
	if err != nil {
		return nil, err
	}
	return out, writeFiles(&r, out)
}

// env is what the operations of one build work with.
func (b *Builder) env(p *plan, in *inputs) *ops.Env {
	return &ops.Env{
		Store: b.o.Store, Images: b.o.Images,
		Driver: lazyDriver{b.runner}, Exec: lazyExecutor{b.runner},
		Sink:   p.sink,
		Locals: in.locals, Layouts: in.layouts,
		Secrets: p.secrets, SSH: p.ssh, GitAuth: p.GitAuth,
		Platform: b.o.Platform, Entitlements: p.allow, HostGateway: b.hostGateway(),
		CgroupParent: b.o.CgroupParent, ResolvConf: b.o.ResolvConf,
		Transport: b.o.Transport, InUserns: b.o.InUserns, Recorded: b.o.Recorded, Emulators: b.o.Emulators,
		SourceDateEpoch: epochOf(p.opts),
	}
}

// epochOf is SOURCE_DATE_EPOCH, nil if it is not a number: the frontend finds
// out what the name of a context or stage means, and complains of others.
func epochOf(opts map[string]string) *time.Time {
	seconds, err := strconv.ParseInt(opts["build-arg:"+epochArg], 10, 64)
	if err != nil {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// evaluate makes the result of every platform, side by side. A nil one is the
// empty file system.
func evaluate(ctx context.Context, res *dockerfile.Result) ([]*ops.Ref, error) {
	out := make([]*ops.Ref, len(res.Images))
	group, ctx := errgroup.WithContext(ctx)
	for i, img := range res.Images {
		group.Go(func() error {
			r, ok := img.Ref.(*ref)
			if !ok {
				return fmt.Errorf("reference of type %T", img.Ref)
			}
			res, err := r.result(ctx)
			if err != nil {
				return err
			}
			if res != nil && res.Local() != nil {
				// Only layers can leave the build.
				_, err = res.Trees(ctx)
			}
			out[i] = res
			return err
		})
	}
	return out, group.Wait()
}
