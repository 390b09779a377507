package ops

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	gitproto "github.com/go-git/go-git/v5/plumbing/transport/git"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// A gitRemote is a repository and the attributes that say how to get in.
type gitRemote struct {
	url   string
	attrs gitAttrs
}

// A gitSession is one conversation with a server. It lives inside the context
// that opened it, and ends when the server says nothing for too long.
type gitSession struct {
	session transport.UploadPackSession
	adv     *packp.AdvRefs
	stall   *stall
	closers []func() error
}

// openGit connects and reads the server's references.
func (e *Env) openGit(ctx context.Context, r gitRemote) (_ *gitSession, err error) {
	ep, err := transport.NewEndpoint(r.url)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	ctx, stall := newStall(ctx, stallTimeout)
	s := &gitSession{stall: stall}
	s.closers = append(s.closers, func() error { stall.stop(); return nil })
	defer func() {
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			err = errors.Join(err, s.close())
		}
	}()
	var client transport.Transport
	var auth transport.AuthMethod
	switch strings.ToLower(ep.Protocol) {
	case "http", "https":
		client = githttp.NewClient(e.httpClient())
		auth, err = e.gitHTTPAuth(ctx, r)
	case "ssh":
		client = gitssh.DefaultClient
		auth, err = e.gitSSHAuth(ctx, r, ep, s)
	case "git":
		client = gitproto.DefaultClient
	default:
		// Not file: a definition does not read the builder's disk.
		err = fmt.Errorf("protocol %q: want http, https, ssh or git: %w", ep.Protocol, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	if s.session, err = client.NewUploadPackSession(ep, auth); err != nil {
		return nil, gitError(err)
	}
	s.closers = append(s.closers, s.session.Close)
	if s.adv, err = s.session.AdvertisedReferencesContext(ctx); err != nil {
		return nil, gitError(err)
	}
	stall.alive()
	return s, nil
}

// gitError gives the library's errors a class.
func gitError(err error) error {
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return fmt.Errorf("%s; give a token with --secret id=GIT_AUTH_TOKEN: %w", strings.TrimRight(err.Error(), ": \n"), errdefs.ErrPermissionDenied)
	case errors.Is(err, transport.ErrRepositoryNotFound), errors.Is(err, transport.ErrEmptyRemoteRepository):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	default:
		return err
	}
}

func (s *gitSession) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// references are the server's, by full name, with "^{}" for what a tag object
// points at; head is the name of the default branch.
func (s *gitSession) references() (refs map[string]string, head string) {
	refs = make(map[string]string, len(s.adv.References))
	for name, h := range s.adv.References {
		refs[name] = h.String()
	}
	for name, h := range s.adv.Peeled {
		refs[name+"^{}"] = h.String()
	}
	for _, v := range s.adv.Capabilities.Get(capability.SymRef) {
		if target, ok := strings.CutPrefix(v, "HEAD:"); ok {
			return refs, target
		}
	}
	// Servers that do not say where HEAD points: a branch with its commit.
	if s.adv.Head != nil {
		for _, name := range []string{"refs/heads/main", "refs/heads/master"} {
			if refs[name] == s.adv.Head.String() {
				return refs, name
			}
		}
	}
	return refs, ""
}

// fetch stores the objects that sha needs. It asks for that commit alone where
// the server gives it, else for all branches and tags.
func (s *gitSession) fetch(sha plumbing.Hash, to *filesystem.Storage, log io.Writer) error {
	req := packp.NewUploadPackRequestFromCapabilities(s.adv.Capabilities)
	if s.gives(sha) {
		req.Wants = []plumbing.Hash{sha}
		if s.adv.Capabilities.Supports(capability.Shallow) {
			req.Depth = packp.DepthCommits(1)
			if err := req.Capabilities.Set(capability.Shallow); err != nil {
				return err
			}
		}
	} else {
		req.Wants = s.tips()
	}
	if len(req.Wants) == 0 {
		return fmt.Errorf("commit %s: repository is empty: %w", sha, errdefs.ErrNotFound)
	}
	if s.adv.Capabilities.Supports(capability.NoProgress) && log == nil {
		if err := req.Capabilities.Set(capability.NoProgress); err != nil {
			return err
		}
	}
	resp, err := s.session.UploadPack(s.stall.ctx, req)
	if err != nil {
		return gitError(err)
	}
	err = packfile.UpdateObjectStorage(to, s.pack(req, resp, log))
	if err := errors.Join(err, resp.Close()); err != nil {
		if cause := s.stall.cause(); cause != nil {
			err = cause
		}
		return fmt.Errorf("fetch %s: %w", sha, err)
	}
	if len(resp.Shallows) > 0 {
		return to.SetShallow(resp.Shallows)
	}
	return nil
}

// gives says whether the server sends sha when asked for it by id.
func (s *gitSession) gives(sha plumbing.Hash) bool {
	c := s.adv.Capabilities
	if c.Supports(capability.AllowReachableSHA1InWant) || c.Supports(capability.AllowTipSHA1InWant) {
		return true
	}
	for _, h := range s.tips() {
		if h == sha {
			return true
		}
	}
	return false
}

func (s *gitSession) tips() []plumbing.Hash {
	seen := map[plumbing.Hash]bool{}
	var out []plumbing.Hash
	for _, h := range s.adv.References {
		if !seen[h] {
			seen[h] = true
			out = append(out, h)
		}
	}
	return out
}

// pack is the stream of objects in a response.
func (s *gitSession) pack(req *packp.UploadPackRequest, resp io.Reader, log io.Writer) io.Reader {
	resp = &aliveReader{resp, s.stall}
	var t sideband.Type
	switch {
	case req.Capabilities.Supports(capability.Sideband):
		t = sideband.Sideband
	case req.Capabilities.Supports(capability.Sideband64k):
		t = sideband.Sideband64k
	default:
		return resp
	}
	d := sideband.NewDemuxer(t, resp)
	d.Progress = log
	return d
}

// An aliveReader tells a stall of each read that brought something.
type aliveReader struct {
	io.Reader
	stall *stall
}

func (r *aliveReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.stall.alive()
	return n, err
}

// gitHTTPAuth is the build's own way in, else the secret for a server: "GIT_AUTH_TOKEN.host" before
// "GIT_AUTH_TOKEN", a header before a token. Nil is what the URL itself says.
func (e *Env) gitHTTPAuth(ctx context.Context, r gitRemote) (transport.AuthMethod, error) {
	a := r.attrs
	u, err := url.Parse(r.url)
	if own := e.GitAuth; err == nil && own != nil && r.attrs.remote == own.Remote {
		if main, err := url.Parse(own.Remote); err == nil && main.Host == u.Host && main.Scheme == u.Scheme {
			return headerAuth{header: own.Header, host: u.Host}, nil
		}
	}
	if err != nil || e.Secrets == nil || !tokenReaches(a.remote, r.url) {
		return nil, nil
	}
	for _, s := range []struct {
		id    string
		token bool
	}{
		{withHost(a.authHeaderSecret, u.Host), false},
		{withHost(a.authTokenSecret, u.Host), true},
		{a.authHeaderSecret, false},
		{a.authTokenSecret, true},
	} {
		if s.id == "" {
			continue
		}
		v, err := e.secret(ctx, s.id)
		if err != nil {
			if isNoSecret(err) {
				continue
			}
			return nil, err
		}
		header := strings.TrimSpace(string(v))
		if s.token {
			header = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+header))
		}
		return headerAuth{header: header, host: u.Host}, nil
	}
	return nil, nil
}

func withHost(id, host string) string {
	if id == "" {
		return ""
	}
	return id + "." + host
}

// tokenReaches says whether the secrets for a repository are given to another
// one, a submodule's: only within github.com, as BuildKit does.
func tokenReaches(main, other string) bool {
	if main == other {
		return true
	}
	const hub = "https://github.com/"
	return strings.HasPrefix(main, hub) && strings.HasPrefix(other, hub)
}

// A headerAuth sets an Authorization header, for one host only.
type headerAuth struct{ header, host string }

// SetAuth implements the library's AuthMethod.
func (a headerAuth) SetAuth(r *http.Request) {
	if r.URL.Host == a.host {
		r.Header.Set("Authorization", a.header)
	}
}

// Name implements the library's AuthMethod.
func (headerAuth) Name() string { return "http-header" }

// String hides the secret.
func (headerAuth) String() string { return "http-header" }

// gitSSHAuth uses the build's agent. The server's key has to be known: from
// the definition, else from the user's own files.
func (e *Env) gitSSHAuth(ctx context.Context, r gitRemote, ep *transport.Endpoint, s *gitSession) (transport.AuthMethod, error) {
	conn, err := e.agent(ctx, r.attrs.sshID)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, conn.Close)
	var files []string
	if r.attrs.knownHosts != "" {
		name, err := tempFile("den-known-hosts-", r.attrs.knownHosts)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, func() error { return os.Remove(name) })
		files = append(files, name)
	}
	db, err := gitssh.NewKnownHostsDb(files...)
	if err != nil {
		return nil, fmt.Errorf("host key of %s is not known: %w: %w", ep.Host, err, errdefs.ErrFailedPrecondition)
	}
	user := ep.User
	if user == "" {
		user = gitssh.DefaultUsername
	}
	port := ep.Port
	if port == 0 {
		port = 22
	}
	auth := &gitssh.PublicKeysCallback{
		User:     user,
		Callback: func() ([]ssh.Signer, error) { return agent.NewClient(conn).Signers() },
	}
	auth.HostKeyCallback = db.HostKeyCallback()
	auth.HostKeyAlgorithms = db.HostKeyAlgorithms(fmt.Sprintf("%s:%d", ep.Host, port))
	return auth, nil
}

func tempFile(pattern, content string) (string, error) {
	f, err := os.CreateTemp("", pattern)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}
