package ops

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	confs "github.com/containerd/continuity/fs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/go-archive"
	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"

	"den/internal/layer"
)

// bkCopy is what BuildKit does for a copy action (solver/llbsolver/file,
// docopy), with the same library on real directories.
func bkCopy(ctx context.Context, src, dest string, a *pb.FileActionCopy, user *fscopy.User) error {
	from, to := cleanFilePath(a.Src), cleanFilePath(a.Dest)
	if !a.CreateDestPath {
		p, err := confs.RootPath(dest, filepath.Join("/", a.Dest))
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Dir(p)); err != nil {
			return err
		}
	}
	owner := func(old *fscopy.User) (*fscopy.User, error) {
		if user != nil {
			return user, nil
		}
		return old, nil
	}
	opt := func(ci *fscopy.CopyInfo) {
		ci.IncludePatterns, ci.ExcludePatterns = a.IncludePatterns, a.ExcludePatterns
		ci.Chown, ci.Utime = owner, actionTime(a.Timestamp)
		if a.ModeStr != "" {
			ci.ModeStr = a.ModeStr
		} else if m := int(a.Mode); m != -1 {
			ci.Mode = &m
		}
		ci.CopyDirContents, ci.FollowLinks = a.DirCopyContents, a.FollowSymlink
		ci.AlwaysReplaceExistingDestPaths = a.AlwaysReplaceExistingDestPaths
	}
	matches := []string{from}
	if a.AllowWildcard {
		var err error
		if matches, err = fscopy.ResolveWildcards(src, from, a.FollowSymlink); err != nil {
			return err
		}
		if len(matches) == 0 {
			if a.AllowEmptyWildcard {
				return nil
			}
			return fmt.Errorf("%s not found", from)
		}
	}
	for _, m := range matches {
		if a.AttemptUnpackDockerCompatibility {
			if ok, err := bkUnpack(src, m, dest, to, owner, user, actionTime(a.Timestamp)); err != nil || ok {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := fscopy.Copy(ctx, src, m, dest, to, opt, fscopy.AllowXAttrErrors); err != nil {
			return err
		}
	}
	return nil
}

func bkUnpack(srcRoot, src, destRoot, dest string, ch fscopy.Chowner, user *fscopy.User, tm *time.Time) (bool, error) {
	src, err := confs.RootPath(srcRoot, src)
	if err != nil {
		return false, err
	}
	fsys, err := filepath.Rel(srcRoot, src)
	if err != nil {
		return false, err
	}
	if !isArchive(dirView(srcRoot), "/"+fsys) {
		return false, nil
	}
	if dest, err = confs.RootPath(destRoot, dest); err != nil {
		return false, err
	}
	if _, err := fscopy.MkdirAll(dest, 0o755, ch, tm); err != nil {
		return false, err
	}
	f, err := os.Open(src)
	if err != nil {
		return false, err
	}
	defer f.Close()
	opts := &archive.TarOptions{BestEffortXattrs: true}
	if user != nil {
		opts.ChownOpts = &archive.ChownOpts{UID: user.UID, GID: user.GID}
	}
	return true, archive.Untar(f, dest, opts)
}

// dirView reads a directory of a test.
func dirView(dir string) fileView {
	root, err := walkLocal(context.Background(), dir, localFilter{}, nil)
	if err != nil {
		panic(err)
	}
	l, err := (&localTree{dir: dir, root: root}).open()
	if err != nil {
		panic(err)
	}
	return newTreeView(l)
}

// listing describes a tree, one line a path. Times of the last minute are
// "now". A directory's time is left out where BuildKit's is now: there it
// changes whenever something is made in it, and den keeps what it had.
func listing(t testing.TB, dir, buildkit string) []string {
	t.Helper()
	inodes := map[uint64]string{}
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		check(t, err)
		rel, err := filepath.Rel(dir, p)
		check(t, err)
		if rel == "." {
			return nil
		}
		var st unix.Stat_t
		check(t, unix.Lstat(p, &st))
		line := fmt.Sprintf("%-24q %06o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			check(t, err)
			line += " -> " + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			check(t, err)
			line += fmt.Sprintf(" %d %.40q", len(data), data)
			if first, ok := inodes[st.Ino]; ok && st.Nlink > 1 {
				line += " = " + first
			} else {
				inodes[st.Ino] = rel
			}
		case st.Rdev != 0:
			line += fmt.Sprintf(" dev %d", st.Rdev)
		}
		info, err := os.Lstat(filepath.Join(buildkit, rel))
		mtime := time.Unix(st.Mtim.Sec, 0)
		switch {
		case d.IsDir() && err == nil && time.Since(info.ModTime()) < time.Minute:
		case time.Since(mtime) < time.Minute:
			line += " now"
		default:
			line += " " + mtime.UTC().Format(time.DateTime)
		}
		for _, k := range xattrsOf(p) {
			line += " " + k
		}
		out = append(out, line)
		return nil
	})
	check(t, err)
	return out
}

func xattrsOf(p string) []string {
	r := newLocalReader(-1)
	attrs, err := r.readXattrs(
		func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
		func(k string, b []byte) (int, error) { return unix.Lgetxattr(p, k, b) })
	if err != nil {
		return nil
	}
	var out []string
	for _, k := range tarsumXattrs(attrs) {
		if !strings.HasPrefix(k, "user.overlay.") {
			out = append(out, fmt.Sprintf("%s=%q", k, attrs[k]))
		}
	}
	return out
}

// applyLayer makes the changes of a layer to dir, as whoever unpacks an image
// does.
func applyLayer(t testing.TB, dir string, tree *fileTree) {
	t.Helper()
	upper := t.TempDir()
	_, err := layer.Build(t.Context(), upper, tree.files(), layer.UnpackOptions{})
	check(t, err)
	var merge func(rel string)
	merge = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(upper, rel))
		check(t, err)
		for _, e := range entries {
			p := filepath.Join(rel, e.Name())
			from, to := filepath.Join(upper, p), filepath.Join(dir, p)
			var st unix.Stat_t
			check(t, unix.Lstat(from, &st))
			old, err := os.Lstat(to)
			opaque := false
			if e.IsDir() {
				n, _ := unix.Lgetxattr(from, "user.overlay.opaque", nil)
				opaque = n > 0
			}
			if err == nil && (!old.IsDir() || !e.IsDir() || opaque) {
				check(t, os.RemoveAll(to))
			}
			if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
				continue // whiteout
			}
			if e.IsDir() {
				if os.Mkdir(to, 0o700) == nil {
					check(t, os.Chmod(to, 0o700)) // a parent may hand down its setgid bit
				}
				merge(p)
			}
		}
	}
	merge("")
	// cp merges directories, keeps hard links and is no code of ours.
	for _, w := range whiteouts(t, upper) {
		check(t, os.Remove(w))
	}
	out, err := exec.Command("cp", "-aT", upper, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func whiteouts(t testing.TB, dir string) (out []string) {
	check(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		check(t, err)
		var st unix.Stat_t
		check(t, unix.Lstat(p, &st))
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			out = append(out, p)
		}
		return nil
	}))
	return out
}

// old makes all times in dir a day in the past, each another one.
func old(t testing.TB, dir string) {
	t.Helper()
	n := 0
	var paths []string
	check(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	}))
	slices.Reverse(paths)
	for _, p := range paths {
		n++
		ts := unix.Timespec{Sec: 1700000000 + int64(n)*60}
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func copySource(t testing.TB) string {
	dir := plant(t, t.TempDir(),
		"file", "file2", "x.txt", "y.txt", "z.go", "new\nline", "[odd].txt", "empty/",
		"dir/a", "dir/b", "dir/sub/c", "dir/sub/deep/d", "dir/sub/deep/e.txt", "dir/none/",
		"link -> file", "dirlink -> dir", "abs -> /dir/sub", "loop -> loop", "dangling -> nowhere", "out -> ../../../../etc/passwd",
		"dir/up -> ../file", "dir/sub/self -> .", "hl/one = file2", "hl/two = file2", "p/q/r/s.txt", "p/q/t.txt", "p/u",
		"conflict/sub", "conflict/dir/x",
	)
	check(t, os.Chmod(filepath.Join(dir, "dir"), 0o750))
	check(t, os.Chmod(filepath.Join(dir, "x.txt"), 0o4711|os.ModeSetuid))
	check(t, os.Chmod(filepath.Join(dir, "dir/sub/deep"), 0o777|os.ModeSticky))
	check(t, unix.Mkfifo(filepath.Join(dir, "hl/fifo"), 0o640))
	_ = unix.Setxattr(filepath.Join(dir, "x.txt"), "user.a", []byte("1"), 0)
	_ = unix.Setxattr(filepath.Join(dir, "dir"), "user.d", []byte("2"), 0)
	old(t, dir)
	return dir
}

func copyBase(t testing.TB) string {
	dir := plant(t, t.TempDir(),
		"etc/conf", "exists/old", "exists/sub/keep", "afile", "tolink -> exists", "abslink -> /exists/sub", "deadlink -> /made/later",
		"rootlink -> /", "conflict/sub/inside", "conflict/dir -> ../exists", "filelink -> afile", "p/q/", "dir", "escape -> ../../..",
	)
	_ = unix.Setxattr(filepath.Join(dir, "exists"), "user.base", []byte("3"), 0)
	old(t, dir)
	return dir
}

// cp is the copy that a Dockerfile's COPY asks for.
func cp(src, dest string, change ...func(*pb.FileActionCopy)) *pb.FileActionCopy {
	a := &pb.FileActionCopy{
		Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirCopyContents: true,
		CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true,
	}
	for _, f := range change {
		f(a)
	}
	return a
}

var copyCases = []*pb.FileActionCopy{
	cp("/file", "/new"), cp("/file", "/new/"), cp("/file", "/exists"), cp("/file", "/exists/"), cp("/file", "/exists/old"),
	cp("/file", "/a/b/c"), cp("/file", "/a/b/c/"), cp("/file", "/afile"), cp("/file", "/afile/"), cp("/file", "/afile/x"),
	cp("/file", "/tolink"), cp("/file", "/tolink/x"), cp("/file", "/abslink/"), cp("/file", "/deadlink"), cp("/file", "/deadlink/"),
	cp("/file", "/filelink"), cp("/file", "/rootlink/new"), cp("/file", "/escape/etc/new"), cp("/file", "/"), cp("/file", "."),
	cp("/file", "/exists/../x/./y//z"), cp("/file", "/exists/."),
	cp("/dir", "/new"), cp("/dir", "/new/"), cp("/dir/", "/exists"), cp("/dir", "/exists/"), cp("/dir/.", "/exists"),
	cp("/dir", "/tolink"), cp("/dir", "/a/b/c"), cp("/dir", "/"), cp("/dir", "/afile"), cp("/dir", "/dir"),
	cp("/", "/all"), cp("/", "/"), cp(".", "/all/"), cp("/empty", "/e"), cp("/empty", "/exists"),
	cp("/link", "/x"), cp("/link", "/x/"), cp("/dirlink", "/x"), cp("/dirlink/sub", "/x"), cp("/abs", "/x/"), cp("/dir/up", "/x"),
	cp("/out", "/x"), cp("/dangling", "/x"), cp("/loop", "/x"), cp("/missing", "/x"), cp("/file/x", "/y"),
	cp("*.txt", "/x"), cp("*.txt", "/x/"), cp("*", "/x/"), cp("d*", "/x"), cp("dir/*", "/x/"), cp("dir/*/*", "/x/"),
	cp("no*", "/x"), cp("nodir/*.txt", "/x"), cp("p/*/t.txt", "/x/"), cp("[xy].txt", "/x/"), cp("\\[odd\\].txt", "/x"), cp("dirlink/*", "/x/"),
	cp("no*", "/x", func(a *pb.FileActionCopy) { a.AllowEmptyWildcard = false }),
	cp("/new\nline", "/x/"),
	cp("/hl", "/x"), cp("/hl/one", "/x"), cp("/conflict", "/conflict"),
	cp("/conflict", "/conflict", func(a *pb.FileActionCopy) { a.AlwaysReplaceExistingDestPaths = true }),
	cp("/dir", "/afile", func(a *pb.FileActionCopy) { a.AlwaysReplaceExistingDestPaths = true }),
	cp("/file", "/exists", func(a *pb.FileActionCopy) { a.AlwaysReplaceExistingDestPaths = true }),
	cp("/dir", "/x", func(a *pb.FileActionCopy) { a.DirCopyContents = false }),
	cp("/dir", "/exists", func(a *pb.FileActionCopy) { a.DirCopyContents = false }),
	cp("/dir/", "/exists/", func(a *pb.FileActionCopy) { a.DirCopyContents = false }),
	cp("/link", "/x", func(a *pb.FileActionCopy) { a.FollowSymlink = false }),
	cp("/dirlink", "/x", func(a *pb.FileActionCopy) { a.FollowSymlink = false }),
	cp("/dangling", "/exists/", func(a *pb.FileActionCopy) { a.FollowSymlink = false }),
	cp("/dirlink/a", "/x", func(a *pb.FileActionCopy) { a.FollowSymlink = false }),
	cp("/file", "/a/b/c", func(a *pb.FileActionCopy) { a.CreateDestPath = false }),
	cp("/file", "/exists/new", func(a *pb.FileActionCopy) { a.CreateDestPath = false }),
	cp("/dir", "/x", func(a *pb.FileActionCopy) { a.Mode = 0o600 }),
	cp("/dir", "/x/y", func(a *pb.FileActionCopy) { a.Mode = 0o2755 }),
	cp("/dir", "/exists", func(a *pb.FileActionCopy) { a.Mode = 0o711 }),
	cp("/x.txt", "/x/", func(a *pb.FileActionCopy) { a.Mode = 0o1777 }),
	cp("/dir", "/x", func(a *pb.FileActionCopy) { a.ModeStr = "u=rwX,go=rX" }),
	cp("/x.txt", "/x", func(a *pb.FileActionCopy) { a.ModeStr = "u-s,a+w" }),
	cp("/file", "/x", func(a *pb.FileActionCopy) { a.ModeStr = "nonsense" }),
	cp("/dir", "/x/y", func(a *pb.FileActionCopy) { a.Timestamp = 1600000000e9 }),
	cp("/dir", "/exists", func(a *pb.FileActionCopy) { a.Timestamp = 1600000000e9 }),
	cp("/link", "/x", func(a *pb.FileActionCopy) { a.Timestamp = 0; a.FollowSymlink = false }),
	cp("/", "/x", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"p/q/r/s.txt"} }),
	cp("/", "/", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"p/*/t.txt", "dir/sub"} }),
	cp("/", "/x", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"**/*.txt"} }),
	cp("/", "/x/", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"nothing"} }),
	cp("/dir", "/x", func(a *pb.FileActionCopy) { a.ExcludePatterns = []string{"sub", "*.txt"} }),
	cp("/dir", "/x", func(a *pb.FileActionCopy) { a.ExcludePatterns = []string{"sub", "!sub/deep/d"} }),
	cp("/", "/x", func(a *pb.FileActionCopy) { a.ExcludePatterns = []string{"**", "!p/**/s.txt"} }),
	cp("*", "/x/", func(a *pb.FileActionCopy) { a.ExcludePatterns = []string{"d*", "l*"} }),
	cp("/", "/exists", func(a *pb.FileActionCopy) {
		a.IncludePatterns, a.ExcludePatterns = []string{"p", "dir"}, []string{"**/t.txt", "dir/sub/*"}
	}),
	cp("/p", "/p", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"q/r"} }),
	cp("/", "/x", func(a *pb.FileActionCopy) { a.IncludePatterns = []string{"["} }),
}

// TestCopyIsBuildKits copies with den and with BuildKit's library and compares
// the trees.
func TestCopyIsBuildKits(t *testing.T) {
	src, base := copySource(t), copyBase(t)
	for i, a := range copyCases {
		t.Run(fmt.Sprintf("%d_%s_%s", i, strings.ReplaceAll(a.Src, "/", "_"), strings.ReplaceAll(a.Dest, "/", "_")), func(t *testing.T) {
			compareCopy(t, src, base, a, nil)
		})
	}
}

func TestCopyWithOwnerIsBuildKits(t *testing.T) {
	needRoot(t)
	src, base := copySource(t), copyBase(t)
	check(t, os.Chmod(filepath.Join(base, "exists"), 0o755|os.ModeSetgid))
	check(t, os.Chown(filepath.Join(base, "exists"), 0, 0))
	for _, a := range []*pb.FileActionCopy{
		cp("/file", "/x/y/z"), cp("/dir", "/exists"), cp("/dir", "/exists/new/"), cp("/link", "/x", func(a *pb.FileActionCopy) { a.FollowSymlink = false }),
		cp("/hl", "/x", func(a *pb.FileActionCopy) { a.Mode = 0o4755 }),
	} {
		compareCopy(t, src, base, a, &fileOwner{33, 44})
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: gives files to root and others")
	}
}

func compareCopy(t *testing.T, src, base string, a *pb.FileActionCopy, owner *fileOwner) {
	t.Helper()
	want, got := t.TempDir(), t.TempDir()
	for _, dir := range []string{want, got} {
		if out, err := exec.Command("cp", "-aT", base, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	var user *fscopy.User
	if owner != nil {
		user = &fscopy.User{UID: int(owner.uid), GID: int(owner.gid)}
	}
	if user == nil && os.Getuid() != 0 && a.Mode == 0o600 {
		t.Skip("needs root: BuildKit's library enters a directory of mode 0600")
	}
	wantErr := bkCopy(t.Context(), src, want, a, user)
	tree := newFileTree(dirView(base), time.Now())
	err := tree.doCopy(t.Context(), a, dirView(src), owner, spoolIn(t))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%v: den says %v, BuildKit %v", a, err, wantErr)
	}
	if err != nil {
		t.Logf("den says %v, BuildKit %v", err, wantErr)
		return
	}
	if os.Getuid() != 0 {
		// A plain user cannot give files to root; the ids are compared as root.
		tree.giveAll(t)
	}
	applyLayer(t, got, tree)
	if diff := cmp.Diff(listing(t, want, want), listing(t, got, want)); diff != "" {
		t.Errorf("%v: (-BuildKit +den)\n%s", a, diff)
	}
}

// giveAll gives everything to whoever runs the test.
func (t *fileTree) giveAll(tb testing.TB) {
	var give func(n *fileNode)
	give = func(n *fileNode) {
		if n.fileInode != nil {
			n.UID, n.GID = uint32(os.Getuid()), uint32(os.Getgid())
		}
		for _, c := range n.children {
			give(c)
		}
	}
	give(t.root)
}

func spoolIn(t testing.TB) *fileSpool {
	s := &fileSpool{dir: func(context.Context) (string, error) { return t.TempDir(), nil }}
	t.Cleanup(func() { check(t, s.close()) })
	return s
}

func readAll(t testing.TB, v fileView, p string) string {
	t.Helper()
	f, err := v.open(p)
	check(t, err)
	defer f.Close()
	data, err := io.ReadAll(f)
	check(t, err)
	return string(data)
}
