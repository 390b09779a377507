// Package cloud gets at things that AWS, Google Cloud and Azure keep: objects in
// buckets, and passwords for registries.
//
// Who den is there is found out as the clouds' own libraries do it: from variables
// and files, from a token that Kubernetes mounted, last from the metadata service
// of the machine. Rules that make it safe:
//
//   - Nothing is asked before an object or a password of that cloud is wanted,
//     the metadata service least of all.
//   - Secrets go by https; plain http is for the clouds' link-local services, for
//     loopback, and for an endpoint that the user wrote with it.
//   - Documents are bounded; what a server says reaches an error shortened and
//     without control characters.
//
// Requests are signed by hand, from the documents named beside the code: it is one
// GET and one token for each cloud, and their libraries are dozens of modules.
package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Options say where a Client looks. The zero value is what the process has.
type Options struct {
	// Env reads a variable; nil means os.Getenv.
	Env func(string) string
	// Transport makes the requests; nil means Go's own, with the proxy of the
	// environment for all but link-local services.
	Transport http.RoundTripper
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// StallTimeout is how long a server may be silent; 0 means 30 s.
	StallTimeout time.Duration
}

// A Client asks the clouds. It is safe for concurrent use.
type Client struct{ o Options }

// New returns a Client. It reads nothing yet.
func New(o Options) *Client {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.Transport == nil {
		o.Transport = transport()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
	}
	return &Client{o}
}

// transport is Go's own, with no proxy between us and the machine's services.
func transport() http.RoundTripper {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		ip := net.ParseIP(r.URL.Hostname())
		if r.URL.Hostname() == googleMetadata || ip != nil && ip.IsLinkLocalUnicast() {
			return nil, nil
		}
		return http.ProxyFromEnvironment(r)
	}
	// An object's bytes are as they are stored.
	t.DisableCompression = true
	return t
}

const (
	maxDocumentBytes = 1 << 20
	maxMessage       = 300
	// metadataTimeout is short: where there is no such service nothing answers.
	metadataTimeout = 2 * time.Second
)

// errNobody says that a cloud's ways of saying who we are were all tried.
var errNobody = fmt.Errorf("no credentials found: %w", errdefs.ErrNotFound)

// A statusError is an answer that is not a success.
type statusError struct {
	status int
	what   string
	header http.Header
}

func (e *statusError) Error() string { return e.what }

func (e *statusError) Unwrap() error {
	switch e.status {
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrUnavailable
}

// stream is exchange for those who need the body alone.
func (c *Client) stream(req *http.Request) (io.ReadCloser, error) {
	b, _, err := c.exchange(req)
	return b, err
}

// exchange makes a request and returns the body of a success, which ends with an
// error when the server says nothing for too long.
func (c *Client) exchange(req *http.Request) (io.ReadCloser, *http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stalled := fmt.Errorf("%s has said nothing for %s: %w", req.URL.Host, c.o.StallTimeout, errdefs.ErrUnavailable)
	timer := time.AfterFunc(c.o.StallTimeout, func() { cancel(stalled) })
	client := http.Client{Transport: c.o.Transport, CheckRedirect: noDowngrade}
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		defer cancel(nil)
		timer.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var outer *url.Error // says the URL, which may hold a signature
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, nil, fmt.Errorf("ask %s: %w", req.URL.Host, err)
	}
	b := &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, timeout: c.o.StallTimeout}
	if resp.StatusCode/100 == 2 {
		return b, resp, nil
	}
	defer b.Close()
	text, _ := io.ReadAll(io.LimitReader(b, maxDocumentBytes))
	return nil, nil, &statusError{
		resp.StatusCode, fmt.Sprintf("%s answers %s: %s", req.URL.Host, resp.Status, printable(string(text))), resp.Header,
	}
}

// noDowngrade keeps what began by https there, and bounds redirects.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return errors.New("more than 5 redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("sends us to %s by %s; refused", req.URL.Host, req.URL.Scheme)
	}
	if req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization")
	}
	return nil
}

// A body ends when nothing comes for too long.
type body struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.timeout)
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// document reads the whole answer.
func (c *Client) document(req *http.Request) ([]byte, error) {
	r, err := c.stream(req)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxDocumentBytes+1))
	if err == nil && len(data) > maxDocumentBytes {
		err = fmt.Errorf("%s answers more than %d bytes: %w", req.URL.Host, maxDocumentBytes, errdefs.ErrOutOfRange)
	}
	return data, err
}

// answer decodes the answer, which is JSON.
func (c *Client) answer(req *http.Request, v any) error {
	data, err := c.document(req)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s does not answer with the JSON that was expected", req.URL.Host)
	}
	return nil
}

// request is http.NewRequestWithContext with a body of text.
func request(ctx context.Context, method, to, contentType, text string) (*http.Request, error) {
	var r io.Reader
	if text != "" {
		r = strings.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, to, r)
	if err != nil {
		return nil, fmt.Errorf("URL is not one: %w", errdefs.ErrInvalidArgument)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

const formType = "application/x-www-form-urlencoded"

// form posts values to a service that must speak TLS, and decodes its answer.
func (c *Client) form(ctx context.Context, to string, values url.Values, v any) error {
	if err := wantTLS(to); err != nil {
		return err
	}
	req, err := request(ctx, http.MethodPost, to, formType, values.Encode())
	if err != nil {
		return err
	}
	return c.answer(req, v)
}

// wantTLS refuses to send a secret in the clear.
func wantTLS(to string) error {
	u, err := url.Parse(to)
	if err == nil && (u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname())) {
		return nil
	}
	return fmt.Errorf("%q: a secret is sent by https only: %w", printable(to), errdefs.ErrInvalidArgument)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// file reads a file of bounded size, such as a token.
func file(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDocumentBytes+1))
	if err == nil && len(data) > maxDocumentBytes {
		err = fmt.Errorf("%s has more than %d bytes: %w", name, maxDocumentBytes, errdefs.ErrOutOfRange)
	}
	return data, err
}

// home is a path below the user's home directory.
func (c *Client) home(elem ...string) string {
	home := c.o.Env("HOME")
	if home == "" {
		home = "/root"
	}
	return filepath.Join(append([]string{home}, elem...)...)
}

// first is the first variable that is set.
func (c *Client) first(names ...string) string {
	for _, n := range names {
		if v := c.o.Env(n); v != "" {
			return v
		}
	}
	return ""
}

// printable shortens what a stranger says to what a terminal may be shown.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

// Web opens what is at an https URL, whose query may be a signature.
func (c *Client) Web(ctx context.Context, to string) (io.ReadCloser, error) {
	where, _, _ := strings.Cut(to, "?")
	if u, err := url.Parse(where); err == nil {
		u.User = nil
		where = u.String()
	}
	err := wantTLS(to)
	if err == nil {
		var r io.ReadCloser
		r, err = c.object(ctx, func(ctx context.Context, at place) (*http.Request, error) {
			req, err := request(ctx, http.MethodGet, to, "", "")
			if err == nil {
				at.ask(req.Header, "Range")
			}
			return req, err
		})
		if err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", printable(where), err)
}

// An Object is where an object is kept.
type Object struct{ Bucket, Key string }

// ParseObject reads "scheme://bucket/key".
func ParseObject(uri string) (Object, error) {
	_, rest, ok := strings.Cut(uri, "://")
	bucket, key, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" || key == "" || strings.ContainsAny(bucket, "?#@:\\ ") {
		return Object{}, fmt.Errorf("%q: want SCHEME://BUCKET/PATH: %w", printable(uri), errdefs.ErrInvalidArgument)
	}
	return Object{bucket, key}, nil
}
