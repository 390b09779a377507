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
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
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
	// may speak TLS with any certificate, or plain http; "*" is every host, and
	// "!HOST" one that is meant by neither. Loopback addresses always may.
	Insecure []string
	// SkipVerify lists, in the same way, who may have any certificate, but has
	// to speak TLS.
	SkipVerify []string
	// CACertDirs are searched for certificates besides /etc/docker/certs.d:
	// DIR/HOST/ is for one host; *.crt, *.pem, *.cert and *.key in DIR itself
	// are for all; "HOST=FILE" is one CA certificate for one host.
	CACertDirs []string
	// ClientCerts are "HOST=CERT,KEY": files to be shown to one host.
	ClientCerts []string
	// MirrorsOnly asks nobody but the mirrors of a host that has some.
	MirrorsOnly bool
	// Helpers are credential helpers that are built in, by the name that
	// docker-credential-NAME has; a program of that name goes first.
	Helpers map[string]CredentialFunc
	// Fallback is asked where no configuration knows a credential.
	Fallback CredentialFunc
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

// A Client talks to any number of registries. It is safe for concurrent use.
type Client struct {
	*shared
	credentials CredentialFunc // nil: those of the configuration
	loggingIn   bool           // the user just typed them

	mu       sync.Mutex
	sessions map[string]*session // by server and the host that credentials are for
}

// shared is what clients with different credentials have in common.
type shared struct {
	o         Options
	daemon    func() daemonConfig // reads the file once
	insecure  func() hostList
	unchecked hostList // TLS with any certificate
	downloads chan struct{}
	uploads   chan struct{}
	lookupIP  func(ctx context.Context, host string) ([]net.IPAddr, error)

	mu      sync.Mutex
	servers map[string]*server // by scheme and host
	opened  map[string]string  // uploads that a refused mount opened: blob's place -> location
	noticed map[string]bool
}

// New returns a Client. It reads no file and opens no connection before they
// are needed. Its errors are errdefs.ErrInvalidArgument.
func New(o Options) (*Client, error) {
	var errs []error
	for _, m := range o.Mirrors {
		_, err := parseMirror(m)
		errs = append(errs, err)
	}
	_, err := parseHosts("insecure registry", o.Insecure)
	unchecked, err2 := parseHosts("registry without verification", o.SkipVerify)
	for _, c := range o.ClientCerts {
		_, _, _, err := parseClientCert(c)
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, err, err2)...); err != nil {
		return nil, err
	}
	o = withDefaults(o)
	s := &shared{
		o:         o,
		downloads: make(chan struct{}, o.MaxDownloads),
		uploads:   make(chan struct{}, o.MaxUploads),
		lookupIP:  net.DefaultResolver.LookupIPAddr,
		servers:   map[string]*server{},
		opened:    map[string]string{},
		noticed:   map[string]bool{},
		unchecked: unchecked,
	}
	s.daemon = sync.OnceValue(s.loadDaemonConfig)
	s.insecure = sync.OnceValue(func() hostList {
		l, err := parseHosts("insecure registry", append(append([]string{}, o.Insecure...), s.daemon().Insecure...))
		if err != nil {
			s.notice("%v", err)
		}
		return l
	})
	return &Client{shared: s, credentials: o.Credentials, sessions: map[string]*session{}}, nil
}

func withDefaults(o Options) Options {
	def(&o.UserAgent, "den")
	def(&o.MaxDownloads, 6)
	def(&o.MaxUploads, 6)
	def(&o.ChunkBytes, 64<<20)
	def(&o.StallTimeout, 30*time.Second)
	def(&o.Tries, defaultTries)
	if o.Backoff == nil {
		o.Backoff = backoff
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Env == nil {
		o.Env = os.Getenv
	}
	return o
}

func def[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// WithCredentials is a client that uses f alone and shares connections,
// mirrors and limits with c.
func (c *Client) WithCredentials(f CredentialFunc) *Client {
	return &Client{shared: c.shared, credentials: f, sessions: map[string]*session{}}
}

// Credential finds the credential for a repository ("library/debian", or
// empty) of a host: none is the zero Credential and no error.
func (c *Client) Credential(ctx context.Context, host, repository string) (Credential, error) {
	if c.credentials != nil {
		return c.credentials(ctx, host, repository)
	}
	return c.storedCredential(ctx, canonicalHost(host), repository)
}

// acquire takes one of the slots; the function it returns gives it back.
func acquire(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return sync.OnceFunc(func() { <-slots }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
