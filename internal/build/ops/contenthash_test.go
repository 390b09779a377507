package ops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// bkRef is a directory as BuildKit's content hash wants it.
type bkRef struct {
	bkcache.ImmutableRef // nil: only the methods below are called
	dir                  string
}

func (d *bkRef) ID() string                                   { return d.dir }
func (d *bkRef) GetEqualMutable() (bkcache.RefMetadata, bool) { return nil, false }
func (d *bkRef) GetExternal(string) ([]byte, error)           { return nil, errors.New("none") }
func (d *bkRef) SetExternal(string, []byte) error             { return nil }
func (d *bkRef) IdentityMapping() *user.IdentityMapping       { return nil }
func (d *bkRef) Mount(context.Context, bool, session.Group) (snapshot.Mountable, error) {
	return bkMount(d.dir), nil
}

type bkMount string

func (p bkMount) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "bind", Source: string(p), Options: []string{"rbind"}}}, func() error { return nil }, nil
}
func (p bkMount) IdentityMapping() *user.IdentityMapping { return nil }

// bkContentHash is BuildKit's answer.
func bkContentHash(t testing.TB, dir string, sel Selector) (oci.Digest, error) {
	return contenthash.Checksum(t.Context(), &bkRef{dir: dir}, filepath.Join("/", sel.Path), contenthash.ChecksumOpts{
		Wildcard: sel.Wildcard, FollowLinks: sel.FollowLinks,
		IncludePatterns: sel.IncludePatterns, ExcludePatterns: sel.ExcludePatterns, RequiredPaths: sel.RequiredPaths,
	}, nil)
}

func contentContext(t testing.TB) string {
	dir := plant(t, t.TempDir(),
		"Dockerfile", "main.go", "a.txt", "a/one.txt", "a/two.go", "a/sub/three.txt", "a/sub/empty/", "a-b/x", "ab/x",
		"deep/er/est/file", "deep/er/est/file2", "hard = main.go", "new\nline", "ü/ö",
		"link -> a", "filelink -> main.go", "chain -> link", "up -> ../../..", "abs -> /deep/er", "loops/loop -> loop", "loops/dangling -> nowhere",
		"deep/back -> ../a/sub", "deep/er/abs -> /a", "links/l1 -> ../a", "links/l2 -> ../main.go",
	)
	check(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	check(t, os.Chmod(filepath.Join(dir, "main.go"), 0o755|os.ModeSetuid))
	check(t, os.Chmod(filepath.Join(dir, "a"), 0o777|os.ModeSticky))
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if err := unix.Setxattr(filepath.Join(dir, "a.txt"), "user.test", []byte("value"), 0); err != nil {
		t.Logf("no extended attributes here: %v", err)
	}
	return dir
}

var contentSelectors = []Selector{
	{Path: "/"}, {Path: "main.go"}, {Path: "/a"}, {Path: "a/"}, {Path: "/a/sub/empty"}, {Path: "empty"}, {Path: "fifo"},
	{Path: "hard"}, {Path: "new\nline"}, {Path: "ü"}, {Path: "a.txt"},
	{Path: "link"}, {Path: "link", FollowLinks: true}, {Path: "link/sub"}, {Path: "chain", FollowLinks: true},
	{Path: "chain/one.txt"}, {Path: "abs", FollowLinks: true}, {Path: "abs/est/file"}, {Path: "up", FollowLinks: true},
	{Path: "up/main.go"}, {Path: "filelink"}, {Path: "filelink", FollowLinks: true}, {Path: "loops/dangling"}, {Path: "loops/*", Wildcard: true}, {Path: "loops/*", Wildcard: true, FollowLinks: true},
	{Path: "deep/back", FollowLinks: true}, {Path: "deep/back/three.txt"}, {Path: "deep/er/abs/two.go"},
	{Path: "deep/../a"}, {Path: "../a"},
	{Path: "*.go", Wildcard: true}, {Path: "*", Wildcard: true}, {Path: "*", Wildcard: true, FollowLinks: true},
	{Path: "a*", Wildcard: true}, {Path: "a/*", Wildcard: true}, {Path: "a/*.txt", Wildcard: true}, {Path: "none*", Wildcard: true},
	{Path: "*/*", Wildcard: true}, {Path: "link/*", Wildcard: true, FollowLinks: true}, {Path: "chain/*.go", Wildcard: true},
	{Path: "links/*", Wildcard: true}, {Path: "links/*", Wildcard: true, FollowLinks: true}, {Path: "deep/*/est", Wildcard: true},
	{Path: "mai?.go", Wildcard: true}, {Path: "[a-m]*.go", Wildcard: true}, {Path: "missing/*", Wildcard: true},
	{Path: "/", IncludePatterns: []string{"a"}}, {Path: "/", IncludePatterns: []string{"a/sub"}},
	{Path: "/", IncludePatterns: []string{"**/*.txt"}}, {Path: "/a", IncludePatterns: []string{"sub/*"}},
	{Path: "/", ExcludePatterns: []string{"a"}}, {Path: "/", ExcludePatterns: []string{"**", "!a/one.txt"}},
	{Path: "/", IncludePatterns: []string{"a", "deep"}, ExcludePatterns: []string{"**/*.txt", "deep/er/est/file"}},
	{Path: "/a", ExcludePatterns: []string{"*.txt"}}, {Path: "a/one.txt", ExcludePatterns: []string{"x"}},
	{Path: "link", ExcludePatterns: []string{"*.go"}, FollowLinks: true}, {Path: "link/sub", IncludePatterns: []string{"*"}},
	{Path: "a*", Wildcard: true, ExcludePatterns: []string{"*.txt"}}, {Path: "*", Wildcard: true, IncludePatterns: []string{"sub"}},
	{Path: "/", IncludePatterns: []string{"a/one.txt"}, RequiredPaths: []string{"/a/one.txt"}},
	{Path: "/", IncludePatterns: []string{"nothing"}}, {Path: "missing", IncludePatterns: []string{"x"}},
}

// TestContentHashIsBuildKits compares with moby/buildkit's own code, on files
// that belong to whoever runs the test.
func TestContentHashIsBuildKits(t *testing.T) {
	dir := contentContext(t)
	root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	// BuildKit hashes a directory on disk with its owner, and the root's header.
	r := newLocalReader(-1)
	root.each(func(e *localEntry) {
		if e.Path == "." {
			info, err := os.Stat(dir)
			check(t, err)
			e.Mode = unix.S_IFDIR | uint32(info.Mode().Perm())
		}
		e.UID, e.GID = uint32(os.Getuid()), uint32(os.Getgid())
		if e.isRegular() {
			data, err := os.ReadFile(filepath.Join(dir, e.Path))
			check(t, err)
			r.sum.Reset()
			r.sum.Write(appendTarsum(nil, &e.Entry))
			r.sum.Write(data)
			r.sum.Sum(e.digest[:0])
			return
		}
		r.hashHeader(e)
	})
	tree := &localTree{root: root}
	for _, sel := range contentSelectors {
		want, bkErr := bkContentHash(t, dir, sel)
		got, err := contentSelect(t.Context(), tree, sel)
		if (err == nil) != (bkErr == nil) || err == nil && got != want {
			t.Errorf("%+v: got %s %v, BuildKit has %s %v", sel, got, err, want, bkErr)
		}
	}
}

func TestMissingPathIsNotFoundByItsName(t *testing.T) {
	dir := contentContext(t)
	root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	tree := &localTree{root: root}
	for _, sel := range []Selector{
		{Path: "missing"}, {Path: "a/missing"}, {Path: "main.go/x"}, {Path: "loops/dangling", FollowLinks: true},
		{Path: "/", IncludePatterns: []string{"zz"}, RequiredPaths: []string{"/zz"}},
	} {
		_, berr := bkContentHash(t, dir, sel)
		_, err := contentSelect(t.Context(), tree, sel)
		if berr == nil || !errdefs.IsNotFound(err) {
			t.Errorf("%+v: got %v, BuildKit has %v", sel, err, berr)
		}
	}
	_, err = contentSelect(t.Context(), tree, Selector{Path: "missing"})
	if diff := cmp.Diff(`"/missing": not found`, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
	if _, err := contentSelect(t.Context(), tree, Selector{Path: "loops/loop", FollowLinks: true}); err == nil {
		t.Error("a link to itself has a content")
	}
}

func TestContentHashIgnoresTimesAndSeesTheRest(t *testing.T) {
	hash := func(dir string) oci.Digest {
		root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
		check(t, err)
		return contentOfLocal(root)
	}
	dir := plant(t, t.TempDir(), "a", "d/b")
	was := hash(dir)
	same := func(what string, want bool) {
		t.Helper()
		if now := hash(dir); (now == was) != want {
			t.Errorf("%s: same is %v", what, !want)
		}
		was = hash(dir)
	}
	check(t, os.Chtimes(filepath.Join(dir, "a"), unixTime(unix.Timespec{Sec: 1}), unixTime(unix.Timespec{Sec: 1})))
	same("time", true)
	check(t, os.Chmod(filepath.Join(dir, "d/b"), 0o600))
	same("mode", false)
	check(t, os.Rename(filepath.Join(dir, "d/b"), filepath.Join(dir, "d/c")))
	same("name", false)
	check(t, os.Mkdir(filepath.Join(dir, "d/e"), 0o755))
	same("empty directory", false)
	check(t, os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o644))
	same("data", false)
	check(t, os.Chmod(dir, 0o711))
	same("mode of the root", true)
}

func TestNothingSelectedFromNothing(t *testing.T) {
	if _, err := contentHash(t.Context(), nil, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := contentHash(t.Context(), nil, nil, []Selector{{Path: "x"}}); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}
