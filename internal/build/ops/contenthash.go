package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// A Selector names the part of a tree that an op reads. Its fields and rules
// are those of BuildKit's content hash, and so is the digest that contentHash
// makes of it (moby/buildkit, cache/contenthash), so that the keys of an
// imported cache mean the same.
type Selector struct {
	// Path is a path in the tree.
	Path string `json:"path,omitempty"`
	// Wildcard says that Path is a pattern of path.Match.
	Wildcard bool `json:"wildcard,omitempty"`
	// FollowLinks resolves the last component of Path, too, if it is a
	// symbolic link.
	FollowLinks bool `json:"followLinks,omitempty"`
	// IncludePatterns and ExcludePatterns apply to what lies below Path.
	IncludePatterns []string `json:"include,omitempty"`
	ExcludePatterns []string `json:"exclude,omitempty"`
	// RequiredPaths must be among what is selected. They count only where
	// there are patterns.
	RequiredPaths []string `json:"required,omitempty"`
}

// filters says whether more than one path has to be looked at.
func (s Selector) filters() bool {
	return s.Wildcard || len(s.IncludePatterns) > 0 || len(s.ExcludePatterns) > 0
}

// contentHashVersion is part of the name of remembered hashes; it changes with
// what they cover.
const contentHashVersion = "contenthash/1/"

// contentHash digests the selected paths of ref: names below each selected
// path, modes, owners, sizes, links, devices, attributes and data, but no
// times. A nil ref is the empty tree. No selector means everything. A selected
// path that is missing is errdefs.ErrNotFound.
func contentHash(ctx context.Context, env *Env, ref *Ref, selectors []Selector) (oci.Digest, error) {
	if len(selectors) == 0 {
		selectors = []Selector{{}}
	}
	if ref == nil {
		return contentOfNothing(selectors)
	}
	if t, ok := ref.Local().(*localTree); ok {
		return contentOf(ctx, t, selectors)
	}
	name, err := contentMemoName(ref, selectors)
	if err != nil {
		return "", err
	}
	if dt, err := env.Store.Derived(name); err == nil && oci.CheckDigest(oci.Digest(dt)) == nil {
		return oci.Digest(dt), nil
	}
	fs, done, err := ref.FS(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	sum, err := contentOf(ctx, &contentFS{fs: fs}, selectors)
	if err != nil {
		return "", fmt.Errorf("checksum of %s: %w", ref.ID(), err)
	}
	_ = env.Store.PutDerived(name, []byte(sum)) // only a memo
	return sum, nil
}

func contentMemoName(ref *Ref, selectors []Selector) (string, error) {
	dt, err := json.Marshal(selectors)
	if err != nil {
		return "", err
	}
	return contentHashVersion + string(ref.ID()) + "/" + digest.FromBytes(dt).Encoded(), nil
}

// contentOf digests each selection and joins the digests.
func contentOf(ctx context.Context, t contentTree, selectors []Selector) (oci.Digest, error) {
	sums := make([][]byte, len(selectors))
	for i, sel := range selectors {
		sum, err := contentSelect(ctx, t, sel)
		if err != nil {
			return "", err
		}
		sums[i] = []byte(sum)
	}
	return digest.FromBytes(bytes.Join(sums, []byte{0})), nil
}

func contentOfNothing(selectors []Selector) (oci.Digest, error) {
	sums := make([][]byte, len(selectors))
	for i, sel := range selectors {
		p := path.Join("/", sel.Path)
		if p != "/" {
			return "", fmt.Errorf("%w: %w", &os.PathError{Op: "lstat", Path: p, Err: os.ErrNotExist}, errdefs.ErrNotFound)
		}
		sums[i] = []byte(digest.FromBytes(nil))
	}
	return digest.FromBytes(bytes.Join(sums, []byte{0})), nil
}

// contentOfLocal digests a whole walked directory.
func contentOfLocal(root *localEntry) oci.Digest {
	var fold func(e *localEntry) localSum
	fold = func(e *localEntry) localSum {
		if !e.isDir() {
			return e.digest
		}
		f := newContentFold(e.digest)
		for _, c := range e.children {
			f.add(contentName(c.Path), fold(c))
		}
		return f.sum()
	}
	return fold(root).digest()
}
