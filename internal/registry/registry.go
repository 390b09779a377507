// Package registry speaks to image registries: the OCI distribution
// specification v1.1 and the Docker registry protocol v2 that it came from.
//
// A registry is a stranger on a bad line. Four rules follow:
//
//   - What arrives is bounded and checked. A manifest is verified here; a blob
//     has exactly the length that its descriptor says and is verified by whoever
//     stores it, so that its bytes are hashed once.
//   - What breaks is taken up where it broke: a download by a Range request, an
//     upload at the offset that the registry reports. A connection that is silent
//     for Options.StallTimeout counts as broken. Tries are bounded and back off.
//   - Credentials go to the host they were stored for and the token service that
//     this host names, over TLS unless the host is on the insecure list, and
//     never along with a redirect to another host.
//   - Mirrors only serve reads, and what they cannot serve comes from the origin.
//
// Errors carry a class of github.com/containerd/errdefs and end in what to do next.
package registry

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"den/internal/oci"

	"github.com/containerd/errdefs"
)

// Options configure a Client. The zero value is what a plain den uses.
type Options struct {
	// ConfigDir holds config.json; empty means $DOCKER_CONFIG, else ~/.docker.
	ConfigDir string
	// Credentials, if set, takes the place of all credential files, helpers
	// and variables.
	Credentials CredentialFunc
	// Mirrors are URLs or hosts asked before docker.io; "host=mirror" is one
	// for another host. A path in it is put before the repository's name
	// ("harbor.example.com/hub"). $DEN_MIRROR and daemon.json add to them.
	Mirrors []string
	// Insecure lists hosts ("registry:5000") and networks ("10.0.0.0/8") that
	// may speak TLS with any certificate, or plain http. Loopback addresses
	// always may.
	Insecure []string
	// CACertDirs are searched for certificates besides /etc/docker/certs.d:
	// DIR/HOST/ is for one host; *.crt, *.pem, *.cert and *.key in DIR itself
	// are for all; "HOST=FILE" is one CA certificate for one host.
	CACertDirs []string
	// DaemonJSON is a file with registry-mirrors and insecure-registries as in
	// dockerd's; empty means /etc/docker/daemon.json if it is there.
	DaemonJSON string
	// UserAgent is sent with each request; empty means "den".
	UserAgent string
	// Proxy chooses the proxy of a request; nil means $HTTP_PROXY,
	// $HTTPS_PROXY and $NO_PROXY.
	Proxy func(*http.Request) (*url.URL, error)
	// MaxDownloads and MaxUploads bound the blobs under way at once; 0 means 6.
	MaxDownloads, MaxUploads int
	// ChunkBytes is the size of the pieces in which an upload is taken up that
	// broke or was too large for the registry in one piece; 0 means 64 MiB.
	ChunkBytes int64
	// StallTimeout is how long a connection may be silent; 0 means 30 s. A
	// registry gets ten times as long to answer once it has a whole upload.
	StallTimeout time.Duration
	// Tries is how often a request is made at most while it makes no progress;
	// 0 means 6.
	Tries int
	// Backoff is the wait before the given retry, the first being 1; nil means
	// doubling from 0.2 s to 10 s, with jitter.
	Backoff func(retry int) time.Duration
	// Sleep waits; nil means by the clock. It returns early with ctx's error.
	Sleep func(ctx context.Context, d time.Duration) error
	// Now is the clock that tokens expire by; nil means time.Now.
	Now func() time.Time
	// Env reads a variable; nil means os.Getenv.
	Env func(string) string
	// Notice takes a line for the user: a mirror that failed, a configuration
	// file that cannot be read. nil drops it.
	Notice func(string)
}

// Credential is what a registry asks for. The zero Credential is anonymous.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token in place of a password.
	IdentityToken string
	// RegistryToken is a bearer token to be sent as it is.
	RegistryToken string
}

// CredentialFunc finds the credential for a repository ("library/debian", or
// empty) of a host ("docker.io"). None is the zero Credential and no error.
type CredentialFunc func(ctx context.Context, host, repository string) (Credential, error)

// A Client talks to any number of registries. It is safe for concurrent use.
type Client struct{}

// New returns a Client. It reads no file and opens no connection before they
// are needed.
func New(o Options) (*Client, error) { return nil, errdefs.ErrNotImplemented }

// WithCredentials is a client that uses f and shares connections with c.
func (c *Client) WithCredentials(f CredentialFunc) *Client { return c }

// Resolve returns the descriptor of the manifest or index that ref names, by a
// HEAD request where the registry answers it fully. ref may be familiar
// ("debian") or canonical.
func (c *Client) Resolve(ctx context.Context, ref string) (oci.Descriptor, error) {
	return oci.Descriptor{}, errdefs.ErrNotImplemented
}

// Manifest returns the manifest or index that ref names and its descriptor.
// The bytes are verified against the digest and at most oci.MaxManifestBytes.
func (c *Client) Manifest(ctx context.Context, ref string) (oci.Descriptor, []byte, error) {
	return oci.Descriptor{}, nil, errdefs.ErrNotImplemented
}

// Blob reads the bytes of a blob from offset on. repo is a repository's name
// ("docker.io/library/debian" or familiar). The reader takes up a broken
// connection by itself and yields exactly d.Size-offset bytes or an error; it
// does not verify the digest. It holds one of Options.MaxDownloads slots until
// it is closed.
func (c *Client) Blob(ctx context.Context, repo string, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	return nil, errdefs.ErrNotImplemented
}

// SmallBlob returns a blob of at most limit bytes, verified: a configuration.
func (c *Client) SmallBlob(ctx context.Context, repo string, d oci.Descriptor, limit int64) ([]byte, error) {
	return nil, errdefs.ErrNotImplemented
}

// HasBlob reports whether the repository has the blob.
func (c *Client) HasBlob(ctx context.Context, repo string, d oci.Descriptor) (bool, error) {
	return false, errdefs.ErrNotImplemented
}

// MountBlob makes a blob of the repository from, on the same registry, appear
// in repo without a transfer. It reports false if the registry would not: then
// push it.
func (c *Client) MountBlob(ctx context.Context, repo, from string, d oci.Descriptor) (bool, error) {
	return false, errdefs.ErrNotImplemented
}

// PushBlob uploads a blob unless the repository has it. open returns its bytes
// from an offset on, and is called again where an upload is taken up. moved,
// unless nil, is told the offset reached; it goes back when the registry lost some.
func (c *Client) PushBlob(ctx context.Context, repo string, d oci.Descriptor, open func(offset int64) (io.ReadCloser, error), moved func(int64)) error {
	return errdefs.ErrNotImplemented
}

// PushManifest uploads a manifest or index under ref's tag or digest, and
// returns its descriptor. All that it names has to be there before.
func (c *Client) PushManifest(ctx context.Context, ref, mediaType string, body []byte) (oci.Descriptor, error) {
	return oci.Descriptor{}, errdefs.ErrNotImplemented
}

// Ping tells whether host answers as a registry and takes the credentials
// stored for it.
func (c *Client) Ping(ctx context.Context, host string) error { return errdefs.ErrNotImplemented }

// Login verifies the credential with host ("" means Docker Hub) and stores it
// as docker login does. The result's Warning, if any, is for the user.
func (c *Client) Login(ctx context.Context, host string, cred Credential) (LoginResult, error) {
	return LoginResult{}, errdefs.ErrNotImplemented
}

// Logout removes the credential stored for host ("" means Docker Hub); that
// there is none is errdefs.ErrNotFound.
func (c *Client) Logout(ctx context.Context, host string) error { return errdefs.ErrNotImplemented }

// Credential finds what is stored for host.
func (c *Client) Credential(ctx context.Context, host, repository string) (Credential, error) {
	return Credential{}, errdefs.ErrNotImplemented
}

// LoginResult says what Login did.
type LoginResult struct {
	// Key is the name that the credential is stored under, File where, unless
	// Helper stores it.
	Key, File, Helper string
	// Warning is docker's about a password stored unencrypted.
	Warning string
}
