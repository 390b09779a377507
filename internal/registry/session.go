package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// minTokenLife is what a token without a stated life has (Docker's token
// specification, "expires_in").
const minTokenLife = 60 * time.Second

// A session is a client's standing with one server: how it wants to be
// authenticated to, and the tokens got so far.
type session struct {
	c    *Client
	v    *server
	host string // the name that its credentials are stored under

	mu        sync.Mutex
	challenge *challenge // nil until the server asked
	grants    map[string]*grant
}

// A grant is the right to a set of scopes: the header to send.
type grant struct {
	busy chan struct{} // held by who fetches it

	// The rest is guarded by busy.
	header  string
	expires time.Time // zero: when the server says so
	extra   string    // a scope that the server asks for besides ours
}

func (c *Client) session(v *server, host string) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := v.host + " " + host
	s := c.sessions[key]
	if s == nil {
		s = &session{c: c, v: v, host: host, grants: map[string]*grant{}}
		c.sessions[key] = s
	}
	return s
}

// roundTrip sends a request with the credentials that the server is known to
// want, and answers its challenge once. newRequest makes the request anew for
// each try.
func (s *session) roundTrip(ctx context.Context, scopes []string, newRequest func() (*http.Request, error)) (*http.Response, error) {
	header, err := s.authorize(ctx, scopes, "", nil)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		req, err := newRequest()
		if err != nil {
			return nil, err
		}
		// An upload may be sent elsewhere by its location: without us.
		home := req.URL.Host == s.v.host
		if header != "" && home {
			req.Header.Set("Authorization", header)
		}
		resp, err := s.v.send(ctx, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try > 0 || !home {
			return resp, nil
		}
		if resp.Request.URL.Host != s.v.host {
			return s.elsewhere(ctx, req, resp)
		}
		ch := pickChallenge(resp.Header)
		if ch == nil {
			return resp, nil
		}
		fresh, err := s.authorize(ctx, scopes, header, ch)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		if fresh == "" || fresh == header {
			return resp, nil
		}
		drain(resp)
		header = fresh
	}
}

// drain empties a short body so that the connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBytes)
	resp.Body.Close()
}

// authorize returns the header for scopes, empty for none. With a challenge,
// which came as the answer to the header used, it gets a new one.
func (s *session) authorize(ctx context.Context, scopes []string, used string, ch *challenge) (string, error) {
	s.mu.Lock()
	if ch != nil {
		s.challenge = ch
	}
	current := s.challenge
	if current == nil {
		s.mu.Unlock()
		return "", nil
	}
	key := current.scheme
	if key == "bearer" {
		key += " " + strings.Join(scopes, " ")
	}
	g := s.grants[key]
	if g == nil {
		g = &grant{busy: make(chan struct{}, 1)}
		s.grants[key] = g
	}
	s.mu.Unlock()

	select {
	case g.busy <- struct{}{}:
		defer func() { <-g.busy }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	expired := !g.expires.IsZero() && !s.v.s.o.Now().Before(g.expires)
	refused := ch != nil && g.header == used // another may have renewed it meanwhile
	if g.header != "" && !expired && !refused {
		return g.header, nil
	}
	if ch != nil && !covers(scopes, ch.params["scope"]) {
		g.extra = ch.params["scope"]
	}
	if err := s.renew(ctx, g, current, scopes); err != nil {
		return "", err
	}
	return g.header, nil
}

// covers reports whether scopes include want: "repository:x:pull" is in
// "repository:x:pull,push".
func covers(scopes []string, want string) bool {
	for _, w := range strings.Fields(want) {
		i := strings.LastIndexByte(w, ':')
		found := slices.ContainsFunc(scopes, func(have string) bool {
			j := strings.LastIndexByte(have, ':')
			if i < 0 || j < 0 || w[:i] != have[:j] {
				return w == have
			}
			actions := strings.Split(have[j+1:], ",")
			for _, a := range strings.Split(w[i+1:], ",") {
				if !slices.Contains(actions, a) {
					return false
				}
			}
			return true
		})
		if !found {
			return false
		}
	}
	return true
}

// renew fills g with what answers the challenge; g's lock is held.
func (s *session) renew(ctx context.Context, g *grant, ch *challenge, scopes []string) error {
	cred, err := s.c.Credential(ctx, s.host, repositoryOf(scopes))
	if err != nil {
		return &finalError{err}
	}
	g.header, g.expires = "", time.Time{}
	if cred.RegistryToken != "" {
		g.header = "Bearer " + cred.RegistryToken
		return nil
	}
	if ch.scheme == "basic" {
		if cred.Username != "" || cred.Password != "" {
			g.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password))
		}
		return nil
	}
	if g.extra != "" {
		scopes = append(slices.Clone(scopes), g.extra)
	}
	token, err := s.token(ctx, ch, cred, scopes, false)
	if err != nil {
		return err
	}
	g.header = "Bearer " + tokenText(token)
	life := max(time.Duration(token.ExpiresIn)*time.Second, minTokenLife)
	g.expires = s.v.s.o.Now().Add(life - life/10)
	return nil
}

// repositoryOf is the repository that the first scope is about, or empty.
func repositoryOf(scopes []string) string {
	if len(scopes) == 0 {
		return ""
	}
	parts := strings.Split(scopes[0], ":")
	if len(parts) != 3 || parts[0] != "repository" {
		return ""
	}
	return parts[1]
}

func tokenText(t *transport.Token) string {
	if t.Token != "" {
		return t.Token
	}
	return t.AccessToken
}

// token asks the token service that the challenge names. offline asks for an
// identity token as well.
func (s *session) token(ctx context.Context, ch *challenge, cred Credential, scopes []string, offline bool) (*transport.Token, error) {
	realm, err := url.Parse(ch.params["realm"])
	if err != nil || realm.Host == "" {
		return nil, &policyError{fmt.Sprintf("registry %s names no token service: realm %.100q", s.v.host, ch.params["realm"])}
	}
	if err := s.v.checkURL(realm); err != nil {
		return nil, err
	}
	if offline {
		q := realm.Query()
		q.Set("offline_token", "true")
		q.Set("client_id", "den")
		realm.RawQuery = q.Encode()
	}
	// Whether the service may be where it is has been decided above, by the
	// registry's standing; Exchange is told that the service is the registry,
	// because it would refuse all private addresses.
	service, err := name.NewRegistry(realm.Host)
	if err != nil {
		return nil, &policyError{fmt.Sprintf("registry %s: token service %s: %v", s.v.host, realm.Host, err)}
	}
	auth := authn.Anonymous
	if cred != (Credential{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: cred.Username, Password: cred.Password, IdentityToken: cred.IdentityToken})
	}
	to := s.v
	if !s.v.insecure { // then its certificate would be whoever's
		if to, err = s.c.server(ctx, "", realm.Host); err != nil {
			return nil, &finalError{err}
		}
	}
	t, err := transport.Exchange(ctx, service, auth, tokenTransport{to}, scopes, &transport.Challenge{
		Scheme:     "bearer",
		Parameters: map[string]string{"realm": realm.String(), "service": ch.params["service"]},
		Insecure:   realm.Scheme == "http",
	})
	if err != nil {
		return nil, &finalError{fmt.Errorf("token of %s: %w", realm.Host, s.tokenError(err, realm.Host, cred))}
	}
	if strings.ContainsAny(tokenText(t), "\r\n") {
		return nil, &policyError{fmt.Sprintf("token service %s sends a token that cannot be one", realm.Host)}
	}
	return t, nil
}

// tokenError turns the library's error into one of ours.
func (s *session) tokenError(err error, service string, cred Credential) error {
	var outer *url.Error // says the URL with the account's name
	if errors.As(err, &outer) {
		err = outer.Err
	}
	var (
		e       *Error
		refused *transport.Error
	)
	switch {
	case errors.As(err, &e):
	case errors.As(err, &refused) && refused.Request != nil:
		e = &Error{Host: refused.Request.URL.Host, Status: refused.StatusCode, class: class(refused.StatusCode, "")}
	case outer != nil:
		return explain(err, service)
	default: // it may quote the whole answer
		return fmt.Errorf("%s: %w", printable(err.Error()), errdefs.ErrUnavailable)
	}
	if e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden || e.Status == http.StatusBadRequest {
		e.class = errdefs.ErrUnauthenticated
		e.Hint = s.c.refusalHint(s.host, cred)
	}
	return e
}

// tokenTransport carries requests to a token service: watched, and tried again
// like all others.
type tokenTransport struct{ v *server }

func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	r := retrier{s: t.v.s, tries: t.v.s.o.Tries}
	for {
		once := req.Clone(ctx)
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			once.Body = body
		}
		resp, err := t.v.sendOnce(ctx, once)
		if err == nil {
			// The library falls back from OAuth2 upon a 404.
			if resp.StatusCode < 400 || resp.StatusCode == http.StatusNotFound {
				return resp, nil
			}
			err = answer(resp, t.v.s.o.Now())
		}
		if err := r.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// elsewhere answers the challenge of a host that we were redirected to, with an
// anonymous token: public registries serve through others that want one
// (registry.k8s.io). Our credentials are not for it.
func (s *session) elsewhere(ctx context.Context, req *http.Request, resp *http.Response) (*http.Response, error) {
	ch := pickChallenge(resp.Header)
	if ch == nil || ch.scheme != "bearer" || req.Body != nil {
		return resp, nil
	}
	token, err := s.token(ctx, ch, Credential{}, strings.Fields(ch.params["scope"]), false)
	if err != nil {
		return resp, nil //nolint:nilerr // its refusal says more
	}
	drain(resp)
	again := req.Clone(ctx)
	again.URL, again.Host = resp.Request.URL, ""
	again.Header.Set("Authorization", "Bearer "+tokenText(token))
	return s.v.send(ctx, again)
}
