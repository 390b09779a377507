package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"den/internal/oci"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpproxy"
)

const maxRedirects = 10

// A server is one host and what was learnt about reaching it.
type server struct {
	s        *shared
	host     string // HOST[:PORT]
	insecure bool
	client   *http.Client

	probe   chan struct{} // held by who finds out the scheme
	mu      sync.Mutex
	scheme  string    // "https", "http", or empty: not known yet
	avoided time.Time // a mirror that failed is left alone until then
}

// server returns the one for host; scheme is what a mirror's URL fixes, or empty.
func (s *shared) server(ctx context.Context, scheme, host string) (*server, error) {
	key := scheme + "://" + host
	s.mu.Lock()
	known := s.servers[key]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	v := &server{s: s, host: host, scheme: scheme, probe: make(chan struct{}, 1)}
	v.insecure = isLoopback(host) || s.onList(ctx, s.insecure(), host)
	if scheme == "" && !v.insecure {
		v.scheme = "https"
	}
	config, err := s.tlsConfig(host, v.insecure || s.onList(ctx, s.unchecked, host))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                  s.proxy(),
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        64 << 10,
		ForceAttemptHTTP2:      true,
		// A transport that unpacks gzip by itself would make all lengths wrong.
		DisableCompression: true,
	}
	v.client = &http.Client{Transport: transport, CheckRedirect: v.checkRedirect}

	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.servers[key]; other != nil {
		return other, nil
	}
	s.servers[key] = v
	return v, nil
}

// onList reports whether host is on a list. As with dockerd, a network on it
// covers the names that resolve into it.
func (s *shared) onList(ctx context.Context, list hostList, host string) bool {
	if list.contains(host, nil) {
		return true
	}
	if len(list.nets) == 0 {
		return false
	}
	name := hostname(host)
	if ip := net.ParseIP(name); ip != nil {
		return list.contains(host, []net.IPAddr{{IP: ip}})
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := s.lookupIP(ctx, name)
	return err == nil && list.contains(host, addrs)
}

func (s *shared) proxy() func(*http.Request) (*url.URL, error) {
	if s.o.Proxy != nil {
		return s.o.Proxy
	}
	first := func(names ...string) string {
		for _, n := range names {
			if v := s.o.Env(n); v != "" {
				return v
			}
		}
		return ""
	}
	choose := (&httpproxy.Config{
		HTTPProxy:  first("HTTP_PROXY", "http_proxy"),
		HTTPSProxy: first("HTTPS_PROXY", "https_proxy"),
		NoProxy:    first("NO_PROXY", "no_proxy"),
		CGI:        s.o.Env("REQUEST_METHOD") != "",
	}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}

// base is the URL of the registry's API. For an insecure host the first call
// finds out which scheme it speaks: https, else http, as docker does.
func (v *server) base(ctx context.Context) (*url.URL, error) {
	scheme := v.known()
	if scheme == "" {
		select {
		case v.probe <- struct{}{}:
			defer func() { <-v.probe }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if scheme = v.known(); scheme == "" {
			var err error
			if scheme, err = v.findScheme(ctx); err != nil {
				return nil, err
			}
			v.mu.Lock()
			v.scheme = scheme
			v.mu.Unlock()
		}
	}
	return &url.URL{Scheme: scheme, Host: v.host, Path: "/v2/"}, nil
}

// known is the scheme, or empty.
func (v *server) known() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.scheme
}

func (v *server) findScheme(ctx context.Context) (string, error) {
	var errs []error
	for _, scheme := range []string{"https", "http"} {
		u := url.URL{Scheme: scheme, Host: v.host, Path: "/v2/"}
		req, err := http.NewRequest(http.MethodGet, u.String(), nil)
		if err != nil {
			return "", &policyError{err.Error()}
		}
		resp, err := v.send(ctx, req)
		if err == nil {
			drain(resp)
			if len(errs) > 0 && resp.StatusCode == http.StatusBadRequest {
				return "", errs[0] // "client sent an HTTP request to an HTTPS server"
			}
			return scheme, nil
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	// With http the last resort, its error is the one to show, unless TLS got
	// further than that.
	if temporary(errs[0]) {
		return "", errs[1]
	}
	return "", fmt.Errorf("%w (and by plain http: %w)", errs[0], errs[1])
}

// send makes one request under a watch and follows redirects.
func (v *server) send(ctx context.Context, req *http.Request) (*http.Response, error) {
	return v.watched(ctx, req, v.client.Do)
}

// sendOnce makes one request under a watch and follows no redirect.
func (v *server) sendOnce(ctx context.Context, req *http.Request) (*http.Response, error) {
	return v.watched(ctx, req, v.client.Transport.RoundTrip)
}

func (v *server) watched(ctx context.Context, req *http.Request, do func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	ctx, w := newWatch(ctx, v.s.o.StallTimeout)
	watchBody(req, w)
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", v.s.o.UserAgent)
	}
	resp, err := do(req.WithContext(ctx))
	if err != nil {
		err = w.cause(err)
		w.end()
		var outer *url.Error // says the URL, which may hold a signature
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, err
	}
	w.stop()
	resp.Body = &watchedBody{ReadCloser: resp.Body, w: w}
	return resp, nil
}

// checkRedirect bounds redirects and keeps credentials at home.
func (v *server) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return &policyError{fmt.Sprintf("registry %s: more than %d redirects", v.host, maxRedirects)}
	}
	if err := v.checkURL(req.URL); err != nil {
		return err
	}
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		// net/http keeps them for a subdomain, which may be anyone's bucket.
		req.Header.Del("Authorization")
	}
	return nil
}

// checkURL refuses what a registry must not make us visit: plain http unless
// it is an insecure one, and the link-local addresses where clouds keep the
// credentials of machines.
func (v *server) checkURL(u *url.URL) error {
	if u.Host == v.host && u.Scheme == v.known() {
		return nil
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && (v.insecure || v.known() == "http"):
	case u.Scheme == "http":
		return &policyError{fmt.Sprintf("registry %s sends us to %s by plain http; refused", v.host, u.Host)}
	default:
		return &policyError{fmt.Sprintf("registry %s sends us to a URL of scheme %.20q; refused", v.host, u.Scheme)}
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if err == nil && hostname(v.host) != u.Hostname() &&
		(ip.Unmap().IsLinkLocalUnicast() || ip.Unmap() == netip.MustParseAddr("fd00:ec2::254") || ip.IsUnspecified()) {
		return &policyError{fmt.Sprintf("registry %s sends us to the link-local address %s; refused", v.host, u.Host)}
	}
	return nil
}

// avoid leaves a mirror alone for a minute.
func (v *server) avoid() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.avoided = v.s.o.Now().Add(time.Minute)
}

func (v *server) isAvoided() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.s.o.Now().Before(v.avoided)
}

// An endpoint is a server in its role for one domain.
type endpoint struct {
	*server
	session *session
	mirror  bool
	prefix  string
	domain  string // whose repositories are asked for
}

// path is the repository's path at this endpoint.
func (e endpoint) path(repository string) string {
	if e.prefix == "" {
		return repository
	}
	return e.prefix + "/" + repository
}

// origin is the endpoint that a domain's writes go to.
func (c *Client) origin(ctx context.Context, domain string) (endpoint, error) {
	return c.endpoint(ctx, mirror{domain: domain, host: connectHost(domain)}, false)
}

func (c *Client) endpoint(ctx context.Context, m mirror, isMirror bool) (endpoint, error) {
	v, err := c.server(ctx, m.scheme, m.host)
	if err != nil {
		return endpoint{}, err
	}
	credentialHost := m.domain
	if isMirror {
		credentialHost = canonicalHost(m.host)
	}
	return endpoint{server: v, session: c.session(v, credentialHost), mirror: isMirror, prefix: m.prefix, domain: m.domain}, nil
}

// readers are the endpoints that may serve a domain, the origin last unless
// Options.MirrorsOnly keeps it out. Mirrors that failed lately are left out.
func (c *Client) readers(ctx context.Context, domain string) ([]endpoint, error) {
	var list []endpoint
	mirrors := c.mirrorsOf(domain)
	for _, m := range mirrors {
		e, err := c.endpoint(ctx, m, true)
		if err != nil {
			c.noticeOnce("mirror %s: %v", m.host, err)
			continue
		}
		if !e.isAvoided() {
			list = append(list, e)
		}
	}
	if c.o.MirrorsOnly && len(mirrors) > 0 {
		if len(list) == 0 {
			return nil, fmt.Errorf("no mirror of %s answers, and %s itself must not be asked: %w", domain, domain, errdefs.ErrUnavailable)
		}
		return list, nil
	}
	e, err := c.origin(ctx, domain)
	if err != nil {
		return nil, err
	}
	return append(list, e), nil
}

// tries is how often a request is made: a mirror has the origin behind it.
func (e endpoint) tries() int {
	if e.mirror {
		return min(2, e.s.o.Tries)
	}
	return e.s.o.Tries
}

// failed notes that a mirror did not serve, and tells the user unless it just
// does not have what was asked.
func (e endpoint) failed(err error) {
	if !e.mirror {
		return
	}
	var refused *Error
	if errors.As(err, &refused) && refused.Status < 500 && refused.Status != http.StatusTooManyRequests {
		return
	}
	e.avoid()
	e.s.noticeOnce("mirror %s is left out for a minute: %v", e.host, err)
}

// loginName is how den login spells the domain.
func loginName(domain string) string {
	if domain == oci.DockerHub {
		return ""
	}
	return " " + strings.TrimSpace(domain)
}
