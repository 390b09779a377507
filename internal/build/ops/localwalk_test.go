package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// plant makes files: "dir/", "file", "link -> target", "name = hard link".
func plant(t testing.TB, dir string, names ...string) string {
	t.Helper()
	for _, n := range names {
		link, target, isLink := strings.Cut(n, " -> ")
		hard, first, isHard := strings.Cut(n, " = ")
		p := filepath.Join(dir, n)
		switch {
		case isLink:
			p = filepath.Join(dir, link)
		case isHard:
			p = filepath.Join(dir, hard)
		}
		check(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case isLink:
			check(t, os.Symlink(target, p))
		case isHard:
			check(t, os.Link(filepath.Join(dir, first), p))
		case strings.HasSuffix(n, "/"):
			check(t, os.MkdirAll(p, 0o755))
		default:
			check(t, os.WriteFile(p, []byte("content of "+n), 0o644))
		}
	}
	return dir
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// taken lists what den's walk finds, as fsutil would say it.
func taken(t testing.TB, dir string, f localFilter) []string {
	t.Helper()
	root, err := walkLocal(t.Context(), dir, f, nil)
	check(t, err)
	var out []string
	root.each(func(e *localEntry) {
		if e.Path != "." {
			out = append(out, fmt.Sprintf("%s %v %q", e.Path, goMode(e.Mode).IsDir(), e.Link+e.first))
		}
	})
	return out
}

// wanted lists what BuildKit's client would send.
func wanted(t testing.TB, dir string, f localFilter) []string {
	t.Helper()
	base, err := fsutil.NewFS(dir)
	check(t, err)
	filtered, err := fsutil.NewFilterFS(base, &fsutil.FilterOpt{
		IncludePatterns: f.Include, ExcludePatterns: f.Exclude, FollowPaths: f.Follow,
	})
	check(t, err)
	var out []string
	err = fsutil.WithHardlinkReset(filtered).Walk(context.Background(), "/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out = append(out, fmt.Sprintf("%s %v %q", p, d.IsDir(), info.Sys().(*types.Stat).Linkname))
		return nil
	})
	check(t, err)
	return out
}

func TestWalkTakesWhatBuildKitsClientSends(t *testing.T) {
	dir := plant(t, t.TempDir(),
		"Dockerfile", ".dockerignore", "main.go", "main_test.go", "a b", "new\nline", "weird[1].txt", "é/ü",
		"src/a.go", "src/a_test.go", "src/deep/er/b.go", "src/deep/er/b.txt", "src/vendor/x/y.go", "src/empty/",
		"docs/index.md", "docs/img/logo.png", "docs/img/big/raw.png", "node_modules/a/index.js", "node_modules/keep/index.js",
		"link -> src", "loop -> loop", "up -> ../..", "abs -> /src/deep", "link2 -> link/deep", "dangling -> nowhere",
		"zhard = main.go", "src/hard = main.go",
	)
	var tests = []localFilter{
		{},
		{Exclude: []string{"node_modules"}},
		{Exclude: []string{"node_modules", "!node_modules/keep"}},
		{Exclude: []string{"**", "!src/**/*.go"}},
		{Exclude: []string{"*", "!src/deep"}},
		{Exclude: []string{"**/*_test.go", "docs/img/*", "!docs/img/logo.png"}},
		{Exclude: []string{"main.go"}},
		{Exclude: []string{"src/**/er", "!**/b.txt"}},
		{Exclude: []string{"/src/", "./docs"}},
		{Exclude: []string{"weird\\[1\\].txt", "?", "é"}},
		{Include: []string{"src"}},
		{Include: []string{"src/deep/er/b.go"}},
		{Include: []string{"src/*/er"}},
		{Include: []string{"**/*.go"}, Exclude: []string{"src/vendor"}},
		{Include: []string{"docs/*", "!docs/img"}},
		{Include: []string{"nothing"}},
		{Follow: []string{"link/a.go"}},
		{Follow: []string{"link2/er"}},
		{Follow: []string{"abs/er/b.go", "Dockerfile"}},
		{Follow: []string{"up/etc", "loop", "dangling"}},
		{Follow: []string{"*.go", "docs/*.md"}},
		{Follow: []string{"l*"}},
		{Follow: []string{"."}},
		{Follow: []string{"missing", "src/empty"}},
		{Follow: []string{"src"}, Exclude: []string{"**/*.txt"}},
		{Follow: []string{}, Exclude: []string{"src"}},
	}
	for _, f := range tests {
		if diff := cmp.Diff(wanted(t, dir, f), taken(t, dir, f)); diff != "" {
			t.Errorf("%+v: (-BuildKit +den)\n%s", f, diff)
		}
	}
}

func TestWalkTakesWhatBuildKitsClientSendsForRandomPatterns(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string { return []string{"a", "b", "c", "a.txt", "b.go"}[r.IntN(5)] }
	for range 60 {
		p := name()
		for range r.IntN(4) {
			p = filepath.Join(p, name())
		}
		_ = os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755)
		_ = os.WriteFile(filepath.Join(dir, p), nil, 0o644)
	}
	pattern := func() string {
		p := []string{"a", "b", "*", "**", "*.txt", "?", "b.go"}[r.IntN(7)]
		for range r.IntN(3) {
			p += "/" + []string{"a", "c", "*", "**", "b.go"}[r.IntN(5)]
		}
		if r.IntN(3) == 0 {
			p = "!" + p
		}
		return p
	}
	patterns := func() (out []string) {
		for range r.IntN(4) {
			out = append(out, pattern())
		}
		return out
	}
	for range 300 {
		f := localFilter{Include: patterns(), Exclude: patterns()}
		if diff := cmp.Diff(wanted(t, dir, f), taken(t, dir, f)); diff != "" {
			t.Fatalf("%+v: (-BuildKit +den)\n%s", f, diff)
		}
	}
}

func TestWalkLeavesOutSocketsAndKeepsFifos(t *testing.T) {
	dir := plant(t, t.TempDir(), "file")
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "socket")}))
	want := []string{`fifo false ""`, `file false ""`}
	if diff := cmp.Diff(want, taken(t, dir, localFilter{})); diff != "" {
		t.Error(diff)
	}
}

func TestWalkGivesEverythingToRoot(t *testing.T) {
	dir := plant(t, t.TempDir(), "d/file", "link -> d")
	check(t, os.Chmod(filepath.Join(dir, "d/file"), os.ModeSetuid|0o750))
	root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	root.each(func(e *localEntry) {
		if e.UID != 0 || e.GID != 0 {
			t.Errorf("%s belongs to %d:%d", e.Path, e.UID, e.GID)
		}
	})
	if got := root.children[0].children[0].Mode; got != unix.S_IFREG|0o4750 {
		t.Errorf("mode is %o", got)
	}
}

func TestUnreadableDirectoryMattersOnlyWhenAskedFor(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs a plain user: root reads everything")
	}
	dir := plant(t, t.TempDir(), "open/file", "closed/file")
	check(t, os.Chmod(filepath.Join(dir, "closed"), 0))
	defer os.Chmod(filepath.Join(dir, "closed"), 0o755)
	if _, err := walkLocal(t.Context(), dir, localFilter{}, nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	if got := taken(t, dir, localFilter{Exclude: []string{"closed/f*", "closed"}}); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestWalkStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := walkLocal(ctx, plant(t, t.TempDir(), "file"), localFilter{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestOpenBelowFollowsNoLink(t *testing.T) {
	dir := plant(t, t.TempDir(), "d/file", "d/out -> /etc/passwd", "up -> ..", "dir -> d")
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(root)
	for _, open := range []func(int, string, int) (int, error){openBelow, openStepwise} {
		fd, err := open(root, "d/file", unix.O_RDONLY)
		check(t, err)
		unix.Close(fd)
		for _, p := range []string{"d/out", "up/etc", "dir/file", "../x", "d/../../x"} {
			if fd, err := open(root, p, unix.O_RDONLY|unix.O_NOFOLLOW); err == nil {
				unix.Close(fd)
				t.Errorf("%s was opened", p)
			}
		}
	}
}
