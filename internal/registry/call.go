package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"den/internal/oci"

	"github.com/containerd/errdefs"
)

// A call is one request as a recipe, made anew for each try.
type call struct {
	method string
	path   string     // below /v2/
	query  url.Values // with path
	url    *url.URL   // in place of path: a location that the registry gave
	header http.Header
	scopes []string
	accept []int // statuses that are a success
	// body, of length bytes, is opened anew for each try; nil is none.
	body   func() (io.ReadCloser, error)
	length int64
	moved  func(int64) // told how much of body was sent
}

func pullScopes(path string) []string { return []string{"repository:" + path + ":pull"} }
func pushScopes(path string) []string { return []string{"repository:" + path + ":pull,push"} }

// do makes a call as often as it takes, up to the endpoint's tries. A call with
// a body that is not safe to be sent again goes through once instead.
func (e endpoint) do(ctx context.Context, c call) (*http.Response, error) {
	r := retrier{s: e.s, tries: e.tries()}
	for {
		resp, err := e.once(ctx, c)
		if err == nil {
			return resp, nil
		}
		if err := r.wait(ctx, err); err != nil {
			return nil, e.advise(ctx, err, c.scopes)
		}
	}
}

// once makes a call one time; only a challenge is answered.
func (e endpoint) once(ctx context.Context, c call) (*http.Response, error) {
	target := c.url
	if target == nil {
		base, err := e.base(ctx)
		if err != nil {
			return nil, err
		}
		target = base.JoinPath(c.path)
		target.RawQuery = c.query.Encode()
	} else if err := e.checkURL(target); err != nil {
		return nil, err
	}
	var bodies []*sentBody
	resp, err := e.session.roundTrip(ctx, c.scopes, func() (*http.Request, error) {
		return c.request(target, 10*e.s.o.StallTimeout, func(b *sentBody) { bodies = append(bodies, b) })
	})
	for _, b := range bodies {
		b.Close() // the transport may not be done with it, but we are
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	if !slices.Contains(c.accept, resp.StatusCode) {
		return nil, answer(resp, e.s.o.Now())
	}
	return resp, nil
}

// request makes the request; opened is told of each body that is opened for it.
func (c call) request(target *url.URL, patience time.Duration, opened func(*sentBody)) (*http.Request, error) {
	req := &http.Request{
		Method: c.method, URL: target, Host: target.Host, Header: c.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if req.Header == nil {
		req.Header = http.Header{}
	}
	// Lengths and ranges are those of the stored bytes.
	req.Header.Set("Accept-Encoding", "identity")
	if c.body == nil {
		return req, nil
	}
	req.ContentLength = c.length
	req.GetBody = func() (io.ReadCloser, error) {
		src, err := c.body()
		if err != nil {
			return nil, &sourceError{err}
		}
		if c.length == 0 {
			return http.NoBody, src.Close()
		}
		b := &sentBody{src: src, length: c.length, after: patience, moved: c.moved}
		opened(b)
		return b, nil
	}
	var err error
	req.Body, err = req.GetBody()
	return req, err
}

// A sourceError is our own side failing to read what it sends.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// advise puts what to do next to an error that is final.
func (e endpoint) advise(ctx context.Context, err error, scopes []string) error {
	var refused *Error
	if !errors.As(err, &refused) {
		if ctx.Err() != nil {
			return err
		}
		return explain(err, e.host)
	}
	if refused.Hint != "" {
		return err
	}
	switch {
	case errdefs.IsUnauthorized(refused.class), errdefs.IsPermissionDenied(refused.class):
		cred, _ := e.session.c.Credential(ctx, e.session.host, repositoryOf(scopes))
		refused.Hint = e.session.c.refusalHint(e.session.host, cred)
	case errdefs.IsResourceExhausted(refused.class):
		refused.Hint = `wait, or log in with "den login` + loginName(e.session.host) + `" for a higher limit`
		if e.domain == oci.DockerHub {
			refused.Hint += `, or name a mirror: DEN_MIRROR=https://mirror.example.com`
		}
	}
	return err
}

// read lets do read from the endpoints of a domain, one after the other, until
// one serves. The origin's error is the one that counts.
func (c *Client) read(ctx context.Context, domain string, do func(endpoint) error) error {
	list, err := c.readers(ctx, domain)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err = do(e); err == nil || ctx.Err() != nil {
			return err
		}
		e.failed(err)
	}
	return err
}

func (s *shared) notice(format string, args ...any) {
	if s.o.Notice != nil {
		s.o.Notice(fmt.Sprintf(format, args...))
	}
}

// noticeOnce is notice for what would otherwise be said with each request.
func (s *shared) noticeOnce(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	said := s.noticed[text]
	s.noticed[text] = true
	s.mu.Unlock()
	if !said {
		s.notice("%s", text)
	}
}
