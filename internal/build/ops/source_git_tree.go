package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	gitcache "github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/moby/buildkit/util/gitutil"

	"den/internal/layer"
	"den/internal/oci"
)

const (
	// Bounds on what a repository may ask for.
	maxGitModules    = 1000
	maxGitDepth      = 16 // of submodules in submodules
	maxGitEntries    = 4 << 20
	maxGitPath       = 4096
	maxGitLinkBytes  = 4096
	maxGitModuleFile = 1 << 20
	// maxGitCacheBytes is what the library keeps of objects in memory.
	maxGitCacheBytes = 32 * gitcache.MiByte
)

// A gitCheckout turns a commit into files.
type gitCheckout struct {
	env   *Env
	attrs gitAttrs
	pin   gitPin
	dir   string // for the repositories, one folder each
	log   io.Writer

	repos   int
	entries []gitEntry
}

// A gitEntry is one path of the result.
type gitEntry struct {
	path string
	mode uint32
	size int64
	link string
	open func() (io.ReadCloser, error)
}

// files fetches everything and lists it in layer order.
func (c *gitCheckout) files(ctx context.Context) (iter.Seq2[layer.File, error], error) {
	sha := c.pin.sha
	repo, commit, err := c.fetch(ctx, gitRemote{url: c.attrs.remote, attrs: c.attrs}, sha)
	if err != nil {
		return nil, err
	}
	if err := c.check(sha, commit); err != nil {
		return nil, err
	}
	if err := c.add(ctx, repo, commit, gitPlace{remote: c.attrs.remote}); err != nil {
		return nil, err
	}
	if c.attrs.keepGitDir && c.attrs.subdir == "" {
		if err := c.addGitDir(repo, commit); err != nil {
			return nil, err
		}
	}
	if err := c.selectSubdir(); err != nil {
		return nil, err
	}
	mtime := c.env.madeAt()
	if c.attrs.commitTime {
		mtime = commit.Committer.When
	}
	return c.inOrder(mtime)
}

// check compares what came with the checksum that the definition wants.
func (c *gitCheckout) check(sha string, commit *object.Commit) error {
	want := c.attrs.checksum
	if want == "" || strings.HasPrefix(sha, want) || strings.HasPrefix(commit.Hash.String(), want) {
		return nil
	}
	return checksumError(want, commit.Hash.String())
}

// A gitRepo is a fetched repository. The library's storage is not safe for
// concurrent use.
type gitRepo struct {
	mu  sync.Mutex
	dir string
	st  *filesystem.Storage
}

// fetch gets one commit, or the commit of a tag object.
func (c *gitCheckout) fetch(ctx context.Context, r gitRemote, sha string) (*gitRepo, *object.Commit, error) {
	if !gitutil.IsCommitSHA(sha) || len(sha) != 40 {
		return nil, nil, fmt.Errorf("commit %.80q: only SHA-1 repositories are supported: %w", sha, errdefs.ErrNotImplemented)
	}
	c.repos++
	dir := filepath.Join(c.dir, fmt.Sprint(c.repos))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	repo := &gitRepo{dir: dir, st: filesystem.NewStorage(osfs.New(dir, osfs.WithBoundOS()), gitcache.NewObjectLRU(maxGitCacheBytes))}
	if err := repo.st.Init(); err != nil {
		return nil, nil, err
	}
	s, err := c.env.openGit(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	err = s.fetch(plumbing.NewHash(sha), repo.st, c.log)
	if err := errors.Join(err, s.close()); err != nil {
		return nil, nil, err
	}
	commit, err := peel(repo.st, plumbing.NewHash(sha))
	if err != nil {
		return nil, nil, fmt.Errorf("commit %s: %w", sha, err)
	}
	return repo, commit, nil
}

// peel follows tag objects to a commit.
func peel(st *filesystem.Storage, h plumbing.Hash) (*object.Commit, error) {
	for range maxGitDepth {
		commit, err := object.GetCommit(st, h)
		if err == nil {
			return commit, nil
		}
		tag, tagErr := object.GetTag(st, h)
		if tagErr != nil {
			return nil, fmt.Errorf("not in the repository: %w: %w", err, errdefs.ErrNotFound)
		}
		h = tag.Target
	}
	return nil, fmt.Errorf("tags of tags: %w", errdefs.ErrInvalidArgument)
}

// A gitPlace is where a repository's tree goes.
type gitPlace struct {
	prefix string // "" or a path with a slash at its end
	remote string
	depth  int
}

// add lists a commit's tree, and the trees of its submodules.
func (c *gitCheckout) add(ctx context.Context, repo *gitRepo, commit *object.Commit, at gitPlace) error {
	tree, err := commit.Tree()
	if err != nil {
		return err
	}
	var links []gitLink
	if err := c.addTree(repo, tree, at.prefix, &links); err != nil {
		return err
	}
	if c.attrs.noModules || len(links) == 0 {
		return nil
	}
	if at.depth >= maxGitDepth {
		return fmt.Errorf("%s: submodules in submodules, %d deep: %w", at.prefix, at.depth, errdefs.ErrInvalidArgument)
	}
	return c.addModules(ctx, tree, links, at)
}

func (c *gitCheckout) addTree(repo *gitRepo, tree *object.Tree, prefix string, links *[]gitLink) error {
	for _, e := range tree.Entries {
		p := prefix + e.Name
		if err := checkGitName(e.Name, p); err != nil {
			return err
		}
		if len(c.entries) >= maxGitEntries {
			return fmt.Errorf("more than %d files: %w", maxGitEntries, oci.ErrTooLarge)
		}
		switch e.Mode {
		case filemode.Dir:
			sub, err := object.GetTree(repo.st, e.Hash)
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			c.entries = append(c.entries, gitEntry{path: p, mode: syscall.S_IFDIR | 0o755})
			if err := c.addTree(repo, sub, p+"/", links); err != nil {
				return err
			}
		case filemode.Submodule:
			c.entries = append(c.entries, gitEntry{path: p, mode: syscall.S_IFDIR | 0o755})
			*links = append(*links, gitLink{path: p, sha: e.Hash.String()})
		default:
			ent, err := repo.file(e)
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			ent.path = p
			c.entries = append(c.entries, ent)
		}
	}
	return nil
}

// checkGitName refuses names that git itself does not check out.
func checkGitName(name, p string) error {
	if name == "" || name == "." || name == ".." || strings.EqualFold(name, ".git") || strings.ContainsAny(name, "/\x00") || len(p) > maxGitPath {
		return fmt.Errorf("tree entry %.200q: not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// file describes a blob of a tree. Permissions are those of a checkout with
// umask 022.
func (r *gitRepo) file(e object.TreeEntry) (gitEntry, error) {
	ent := gitEntry{open: func() (io.ReadCloser, error) { return r.blob(e.Hash) }}
	switch e.Mode {
	case filemode.Regular, filemode.Deprecated:
		ent.mode = syscall.S_IFREG | 0o644
	case filemode.Executable:
		ent.mode = syscall.S_IFREG | 0o755
	case filemode.Symlink:
		target, err := r.readBlob(e.Hash, maxGitLinkBytes)
		if err != nil {
			return ent, err
		}
		return gitEntry{mode: syscall.S_IFLNK | 0o777, link: string(target)}, nil
	default:
		return ent, fmt.Errorf("mode %s: %w", e.Mode, errdefs.ErrInvalidArgument)
	}
	var err error
	ent.size, err = r.st.EncodedObjectSize(e.Hash)
	return ent, err
}

func (r *gitRepo) blob(h plumbing.Hash) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, err := r.st.EncodedObject(plumbing.BlobObject, h)
	if err != nil {
		return nil, err
	}
	return o.Reader()
}

func (r *gitRepo) readBlob(h plumbing.Hash, limit int64) ([]byte, error) {
	b, err := r.blob(h)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(&boundedReader{r: b, left: limit, name: h.String()})
}

// wanted says whether p or something below it is part of the result.
func (c *gitCheckout) wanted(p string) bool {
	sub := c.attrs.subdir
	return sub == "" || p == sub || strings.HasPrefix(p, sub+"/") || strings.HasPrefix(sub, p+"/")
}

// selectSubdir makes a sub-directory the root.
func (c *gitCheckout) selectSubdir() error {
	sub := c.attrs.subdir
	if sub == "" {
		return nil
	}
	var out []gitEntry
	found := false
	for _, e := range c.entries {
		if e.path == sub {
			if found = e.mode&syscall.S_IFMT == syscall.S_IFDIR; !found {
				break
			}
		}
		if rest, ok := strings.CutPrefix(e.path, sub+"/"); ok {
			e.path = rest
			out = append(out, e)
		}
	}
	if !found {
		return fmt.Errorf("sub-directory %q: not a directory of the repository: %w", sub, errdefs.ErrNotFound)
	}
	c.entries = out
	return nil
}

// inOrder yields the entries as a layer has them.
func (c *gitCheckout) inOrder(mtime time.Time) (iter.Seq2[layer.File, error], error) {
	slices.SortFunc(c.entries, func(a, b gitEntry) int { return layer.ComparePaths(a.path, b.path) })
	for i := 1; i < len(c.entries); i++ {
		if c.entries[i].path == c.entries[i-1].path {
			return nil, fmt.Errorf("tree has %q twice: %w", c.entries[i].path, errdefs.ErrInvalidArgument)
		}
	}
	return func(yield func(layer.File, error) bool) {
		if !yield(layer.File{Entry: oci.Entry{Path: ".", Mode: syscall.S_IFDIR | 0o755, ModTime: mtime}}, nil) {
			return
		}
		for _, e := range c.entries {
			f := layer.File{Entry: oci.Entry{Path: e.path, Mode: e.mode, Size: e.size, Link: e.link, ModTime: mtime}}
			if e.mode&syscall.S_IFMT == syscall.S_IFREG {
				f.Open = e.open
			}
			if !yield(f, nil) {
				return
			}
		}
	}, nil
}
