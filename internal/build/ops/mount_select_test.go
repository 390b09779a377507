package ops

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// overlayDirs makes directories in overlay form, top first. "-name" is a
// whiteout, "name!/" an opaque directory.
func overlayDirs(t *testing.T, layers ...[]string) []string {
	t.Helper()
	var dirs []string
	for _, names := range layers {
		dir := t.TempDir()
		dirs = append(dirs, dir)
		for _, n := range names {
			p := filepath.Join(dir, strings.Trim(n, "-!/"))
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			target, isLink := "", false
			if i := strings.Index(n, "->"); i >= 0 {
				p, target, isLink = filepath.Join(dir, n[:i]), n[i+2:], true
			}
			switch {
			case isLink:
				err = os.Symlink(target, p)
			case strings.HasPrefix(n, "-"):
				if err = unix.Mknod(p, unix.S_IFCHR, 0); err != nil {
					t.Skipf("needs whiteouts (mknod 0:0): %v", err)
				}
			case strings.HasSuffix(n, "!/"):
				if err = os.MkdirAll(p, 0o755); err == nil {
					if err = unix.Lsetxattr(p, "user.overlay.opaque", []byte("y"), 0); err != nil {
						t.Skipf("needs user extended attributes in %s: %v", dir, err)
					}
				}
			case strings.HasSuffix(n, "/"):
				err = os.MkdirAll(p, 0o755)
			default:
				err = os.WriteFile(p, []byte(n), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dirs
}

func TestSelectionMergesAsOverlayfsDoes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers [][]string // top first
		path   string
		dirs   []int
		file   int // layer of the file, or -1
	}{
		{"in all layers", [][]string{{"d/a"}, {"other"}, {"d/b"}}, "/d", []int{0, 2}, -1},
		{"deep", [][]string{{"x/d/a"}, {"x/"}, {"x/d/b"}}, "/x/d", []int{0, 2}, -1},
		{"removed between", [][]string{{"d/a"}, {"-d"}, {"d/b"}}, "/d", []int{0}, -1},
		{"parent removed between", [][]string{{"x/d/a"}, {"-x"}, {"x/d/b"}}, "/x/d", []int{0}, -1},
		{"opaque", [][]string{{"d/a"}, {"d!/", "d/c"}, {"d/b"}}, "/d", []int{0, 1}, -1},
		{"parent opaque", [][]string{{"x/d/a"}, {"x!/"}, {"x/d/b"}}, "/x/d", []int{0}, -1},
		{"file below directory", [][]string{{"d/a"}, {"d"}, {"d/b"}}, "/d", []int{0}, -1},
		{"link below directory", [][]string{{"d/a"}, {"d->/etc"}, {"d/b"}}, "/d", []int{0}, -1},
		{"parent is a link below", [][]string{{"x/d/a"}, {"x->/etc"}, {"x/d/b"}}, "/x/d", []int{0}, -1},
		{"file", [][]string{{"other"}, {"d/f"}, {"d/f"}}, "/d/f", nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dirs := overlayDirs(t, tt.layers...)
			var s selection
			if err := s.gather(dirs, tt.path); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, i := range tt.dirs {
				want = append(want, filepath.Join(dirs[i], tt.path))
			}
			if diff := cmp.Diff(want, s.dirs); diff != "" {
				t.Error(diff)
			}
			if tt.file >= 0 && s.file != filepath.Join(dirs[tt.file], tt.path) {
				t.Errorf("file is %s", s.file)
			}
		})
	}
}

func TestSelectionOfNothingIsAnError(t *testing.T) {
	dirs := overlayDirs(t, []string{"-d"}, []string{"d/a"})
	var s selection
	if err := s.gather(dirs, "/d"); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}
