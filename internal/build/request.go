package build

import (
	"context"
	"io"
	"os"

	"den/internal/build/ops"
	"den/internal/image"
	"den/internal/progress"
)

// A Request is one `den build`, with the values as a person types them: the
// fields bear the flags' names and take what docker build and buildx take.
type Request struct {
	// Context is a directory, "-" for a tar or a Dockerfile on Stdin, a git
	// repository ("https://host/repo.git#ref:dir", "git@host:repo") or the URL
	// of a tarball or a Dockerfile.
	Context string
	// Tar, unless nil, is a tar archive, compressed or not, in Context's place.
	Tar io.Reader
	// SubDir is a directory in a local or tar context that is the context.
	SubDir string
	// GitAuth is how to get at a git context.
	GitAuth *GitAuth
	// File is the Dockerfile: a path, "-" for Stdin, an http(s) URL, or, with a
	// context that is not a directory, a path inside it. Empty is "Dockerfile".
	File string
	// Stdin is read for a Context or File of "-"; Stdout is written for an
	// output with the destination "-".
	Stdin  io.Reader
	Stdout io.Writer

	// Tags name the image.
	Tags []string
	// BuildArgs are "NAME=value", or "NAME" for the value that LookupEnv has.
	BuildArgs []string
	// BuildContexts are named contexts, "name=path", "name=docker-image://...",
	// "name=oci-layout://dir:tag", or a URL.
	BuildContexts []string
	// Labels are "key=value".
	Labels []string
	// Annotations are "[manifest|index[,...][[platform]]:]key=value".
	Annotations []string
	// Target is the stage to build; empty is the last.
	Target string
	// Platforms to build for; empty is DOCKER_DEFAULT_PLATFORM, else this
	// machine's.
	Platforms []string

	// NoCache executes every step, NoCacheFilter those of the named stages.
	NoCache       bool
	NoCacheFilter []string
	// CacheScopes are the scopes of the build cache: the first is written to,
	// all are read. None is the default scope.
	CacheScopes []string
	// Pull asks the registry even for images that are here.
	Pull bool

	// Network of RUN: "", "default", "host" or "none".
	Network string
	// AddHosts are "host:ip" or "host=ip"; the ip may be "host-gateway".
	AddHosts []string
	// ShmSize of RUN, such as "128m"; Ulimits are "name=soft[:hard]".
	ShmSize      string
	Ulimits      []string
	CgroupParent string
	// Secrets are "id=name[,src=path|env=NAME]"; SSH "id[=socket|key[,key]]".
	Secrets []string
	SSH     []string
	// Allow grants "network.host" or "security.insecure" to steps that ask.
	Allow []string

	// Outputs are "type=...,key=value", or a destination directory, or "-".
	// None keeps the image in the store. Push and Load add to them.
	Outputs []string
	Push    bool
	Load    bool
	// Rewriting of the layers in every output; Clamp makes its Epoch
	// SOURCE_DATE_EPOCH. Format is that of outputs which say nothing of it.
	Rewriting image.Rewriting
	Clamp     bool
	Format    image.Format
	// EditConfig changes the image's configuration before it is complete.
	EditConfig func(raw []byte) ([]byte, error)
	// Deliver, unless nil, is one more output.
	Deliver *Delivery
	// IIDFile and MetadataFile are written when the build has succeeded.
	IIDFile      string
	MetadataFile string
	// Call is "" or "build", or looks at the Dockerfile only: "check",
	// "outline", "targets", each with ",format=json" if wanted.
	Call string

	// LookupEnv reads the environment; nil is os.LookupEnv.
	LookupEnv func(string) (string, bool)
	// Sink is told what happens; nil discards it.
	Sink progress.Sink
}

// GitAuth is the way into one git repository.
type GitAuth = ops.GitAuth

// A Delivery is an output that the caller serves itself.
type Delivery struct {
	// To takes the image, ready to leave; what it holds is given up after.
	To func(ctx context.Context, b *image.Blobs) error
}

func (r *Request) lookupEnv(name string) (string, bool) {
	if r.LookupEnv == nil {
		return os.LookupEnv(name)
	}
	return r.LookupEnv(name)
}

func (r *Request) env(name string) string {
	v, _ := r.lookupEnv(name)
	return v
}
