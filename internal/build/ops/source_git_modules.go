package ops

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/moby/buildkit/util/gitutil"

	"den/internal/oci"
)

// A gitLink is a submodule's place and commit.
type gitLink struct {
	path string // in the result
	sha  string
}

// addModules fetches the submodules of one tree.
func (c *gitCheckout) addModules(ctx context.Context, tree *object.Tree, links []gitLink, at gitPlace) error {
	modules, err := readModules(tree)
	if err != nil {
		return fmt.Errorf("%s.gitmodules: %w", at.prefix, err)
	}
	for _, l := range links {
		if !c.wanted(l.path) {
			continue
		}
		m := modules[strings.TrimPrefix(l.path, at.prefix)]
		if m == nil {
			return fmt.Errorf("no url found for submodule path %q in .gitmodules: %w", l.path, errdefs.ErrInvalidArgument)
		}
		remote, err := submoduleURL(at.remote, m.URL)
		if err != nil {
			return fmt.Errorf("submodule %s: %w", l.path, err)
		}
		if c.repos >= maxGitModules {
			return fmt.Errorf("more than %d submodules: %w", maxGitModules, oci.ErrTooLarge)
		}
		repo, commit, err := c.fetch(ctx, gitRemote{url: remote, attrs: c.attrs}, l.sha)
		if errdefs.IsPermissionDenied(err) && !tokenReaches(c.attrs.remote, remote) {
			err = fmt.Errorf("the server wants a token, which is given to other repositories within github.com only: %w", errdefs.ErrPermissionDenied)
		}
		if err == nil {
			err = c.add(ctx, repo, commit, gitPlace{prefix: l.path + "/", remote: remote, depth: at.depth + 1})
		}
		if err != nil {
			return fmt.Errorf("submodule %s (%s): %w", l.path, redact(remote), err)
		}
	}
	return nil
}

// readModules reads .gitmodules, by path.
func readModules(tree *object.Tree) (map[string]*config.Submodule, error) {
	f, err := tree.File(".gitmodules")
	if errors.Is(err, object.ErrFileNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if f.Size > maxGitModuleFile {
		return nil, oci.ErrTooLarge
	}
	text, err := f.Contents()
	if err != nil {
		return nil, err
	}
	parsed := config.NewModules()
	if err := parsed.Unmarshal([]byte(text)); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	out := map[string]*config.Submodule{}
	for _, m := range parsed.Submodules {
		out[path.Clean(m.Path)] = m
	}
	return out, nil
}

// submoduleURL resolves a submodule's URL, which may be relative to that of
// the repository it is in. Only network protocols are followed.
func submoduleURL(parent, sub string) (string, error) {
	if strings.HasPrefix(sub, "./") || strings.HasPrefix(sub, "../") {
		if u, err := url.Parse(parent); err == nil && u.Host != "" {
			u.Path = path.Join(u.Path, sub)
			return u.String(), nil
		}
		host, p, ok := strings.Cut(parent, ":")
		if !ok {
			return "", fmt.Errorf("relative URL %q: %w", sub, errdefs.ErrInvalidArgument)
		}
		return host + ":" + path.Join(p, sub), nil
	}
	if !gitutil.IsGitTransport(sub) {
		return "", fmt.Errorf("URL %.200q: not of a protocol that is followed: %w", redact(sub), errdefs.ErrInvalidArgument)
	}
	return sub, nil
}
