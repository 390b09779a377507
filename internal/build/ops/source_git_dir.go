package ops

import (
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/index"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// addGitDir completes the fetched repository into one that git works with,
// and adds it as .git.
func (c *gitCheckout) addGitDir(repo *gitRepo, commit *object.Commit) error {
	cfg := config.NewConfig()
	cfg.Remotes["origin"] = &config.RemoteConfig{
		Name: "origin", URLs: []string{redactUser(c.attrs.remote)},
		Fetch: []config.RefSpec{"+refs/heads/*:refs/remotes/origin/*"},
	}
	if err := repo.st.SetConfig(cfg); err != nil {
		return err
	}
	if err := repo.st.SetReference(plumbing.NewHashReference(plumbing.HEAD, commit.Hash)); err != nil {
		return err
	}
	if strings.HasPrefix(c.pin.ref, "refs/") {
		ref := plumbing.NewHashReference(plumbing.ReferenceName(c.pin.ref), plumbing.NewHash(c.pin.sha))
		if err := repo.st.SetReference(ref); err != nil {
			return err
		}
	}
	idx, err := commitIndex(commit)
	if err != nil {
		return err
	}
	if err := repo.st.SetIndex(idx); err != nil {
		return err
	}
	return filepath.WalkDir(repo.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(repo.dir, name)
		if err != nil {
			return err
		}
		e := gitEntry{path: path.Join(".git", filepath.ToSlash(rel)), mode: syscall.S_IFDIR | 0o755}
		if !d.IsDir() {
			e.mode, e.size = syscall.S_IFREG|0o644, st.Size()
			e.open = func() (io.ReadCloser, error) { return os.Open(name) }
		}
		c.entries = append(c.entries, e)
		return nil
	})
}

// commitIndex is the index of a fresh checkout. Times and sizes are left to
// git's first look at the files.
func commitIndex(commit *object.Commit) (*index.Index, error) {
	tree, err := commit.Tree()
	if err != nil {
		return nil, err
	}
	idx := &index.Index{Version: 2}
	w := object.NewTreeWalker(tree, true, nil)
	defer w.Close()
	for {
		name, e, err := w.Next()
		if err == io.EOF {
			return idx, nil
		}
		if err != nil {
			return nil, err
		}
		if e.Mode != filemode.Dir {
			idx.Entries = append(idx.Entries, &index.Entry{Name: name, Hash: e.Hash, Mode: e.Mode})
		}
	}
}

// redactUser leaves a URL's password out of what is kept in an image.
func redactUser(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User == nil {
		return raw
	}
	u.User = url.User(u.User.Username())
	return u.String()
}
