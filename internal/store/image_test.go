package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/erofs"
	"den/internal/layer"
	"den/internal/tree"
)

// imageStore opens a store in image form; the same root twice is one store.
func imageStore(t testing.TB, root string, bases ...string) *Store {
	t.Helper()
	return openWith(t, root, Options{EngineDir: t.TempDir(), Image: true, Bases: bases})
}

// fileIn reads the file of a layer and says who owns it.
func fileIn(t testing.TB, l *Layer) (string, uint32) {
	t.Helper()
	v, err := tree.Stack(l.Dirs())
	must(t, err)
	defer v.Close()
	e, err := v.Lstat("file")
	must(t, err)
	f, err := v.Open("file")
	must(t, err)
	defer f.Close()
	b := make([]byte, e.Size)
	_, err = f.Read(b)
	must(t, err)
	return string(b), e.UID
}

func TestImagesArePublishedLikeTrees(t *testing.T) {
	s := imageStore(t, filepath.Join(t.TempDir(), "store"))
	d, err := s.NewDraft(t.Context())
	must(t, err)
	if exists(d.FS()) {
		t.Error("the image exists before it is written")
	}
	must(t, os.WriteFile(filepath.Join(d.Dir(), "scratch"), []byte("x"), 0o600))
	must(t, plantFile(t.Context(), d, strings.Repeat("a", 10000)))
	l, err := d.Publish(t.Context(), LayerMeta{DiffID: digest.FromString("a"), SizeBytes: 1 << 40, TreeBytes: 1 << 40, Entries: 1 << 20})
	must(t, err)
	must(t, l.Close())
	again, err := s.Layer(t.Context(), l.DiffID())
	must(t, err)
	defer again.Close()
	if text, uid := fileIn(t, again); len(text) != 10000 || uid != 33 {
		t.Errorf("%d bytes of uid %d", len(text), uid)
	}
	wrapper := filepath.Dir(again.Dirs()[0])
	if exists(filepath.Join(wrapper, fsDir)) {
		t.Error("the plain directory was published")
	}
	if said, takes := again.Meta().diskBytes(), diskUsage(t, wrapper); said < takes || said > takes+4*blockBytes {
		t.Errorf("counted %d bytes, they are %d", said, takes)
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestDraftWithoutItsImageIsNotPublished(t *testing.T) {
	s := imageStore(t, filepath.Join(t.TempDir(), "store"))
	for name, spoil := range map[string]func(path string) error{
		"none":        func(string) error { return nil },
		"torn":        func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		d, err := s.NewDraft(t.Context())
		must(t, err)
		must(t, spoil(d.FS()))
		if _, err := d.Publish(t.Context(), LayerMeta{DiffID: digest.FromString(name)}); err == nil {
			t.Errorf("%s: published", name)
		}
		must(t, d.Close())
	}
	mustBeSound(t, s)
}

func TestFormsOfOneStoreIgnoreEachOther(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	plain, images := openStore(t, root, t.TempDir()), imageStore(t, root)
	id := putLayer(t, plain, "a")
	_, err := images.Layer(t.Context(), id)
	mustBeGone(t, err)
	putLayer(t, images, "a")
	for _, s := range []*Store{plain, images} {
		l, err := s.Layer(t.Context(), id)
		must(t, err)
		if text, _ := fileIn(t, l); text != "a" {
			t.Errorf("%s: %q", s.Class(), text)
		}
		must(t, l.Close())
		mustBeSound(t, s) // knows both
	}
}

func TestImagesOfABaseServeAnyUser(t *testing.T) {
	dir := t.TempDir()
	base := imageStore(t, filepath.Join(dir, "base"))
	below := putLayer(t, base, "below")
	if os.Geteuid() == 0 { // whoever made them
		must(t, os.Chown(filepath.Join(base.root, "layers", imageClass), 4711, 4711))
	}
	s := imageStore(t, filepath.Join(dir, "store"), base.root)
	putLayer(t, s, "top", below)
	l, err := s.Layer(t.Context(), digest.FromString("layer top"))
	must(t, err)
	defer l.Close()
	if len(l.Dirs()) != 2 || !strings.HasPrefix(l.Dirs()[1], base.root) {
		t.Errorf("trees %v", l.Dirs())
	}
	var names []string
	for f, err := range layer.WalkStack(l.Dirs()) {
		must(t, err)
		names = append(names, f.Path)
	}
	if strings.Join(names, " ") != ". file" {
		t.Errorf("the stack holds %v", names)
	}
	mustBeSound(t, s)
}

func TestVerifyFindsABrokenImage(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(path string) error
		deep   bool
	}{
		"torn":                {func(path string) error { return errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 5000)) }, false},
		"gone":                {os.Remove, false},
		"no inodes":           {func(path string) error { return overwrite(path, 2*blockBytes) }, true},
		"attributes are torn": {func(path string) error { return overwrite(path+erofs.AttrsSuffix, 0) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := imageStore(t, filepath.Join(t.TempDir(), "store"))
			l, err := publishLayer(t.Context(), s, "a")
			must(t, err)
			must(t, l.Close())
			must(t, test.damage(l.Dirs()[0]))
			r, err := s.Verify(t.Context(), test.deep)
			must(t, err)
			if len(r.Problems) != 1 {
				t.Errorf("problems %v, want one", r.Problems)
			}
		})
	}
}

func overwrite(path string, at int64) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strings.Repeat("\xff", 512)), at)
	return errors.Join(err, f.Close())
}

func TestImageOfASourceIsOpenedAsItIs(t *testing.T) {
	theirs := imageStore(t, filepath.Join(t.TempDir(), "store"))
	l, err := publishLayer(t.Context(), theirs, "a")
	must(t, err)
	must(t, l.Close())
	open := func() (*SourceTree, error) {
		src, err := OpenSource(theirs.root)
		must(t, err)
		t.Cleanup(func() { _ = src.Close() })
		return src.Tree(l.DiffID())
	}
	got, err := open()
	must(t, err)
	v, err := tree.Stack([]string{got.Dir})
	must(t, err)
	if e, err := v.Lstat("file"); err != nil || e.UID != 33 || len(e.Xattrs) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	must(t, errors.Join(v.Close(), got.Close()))

	// A name that leads elsewhere is none.
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.Rename(l.Dirs()[0], secret))
	must(t, os.Symlink(secret, l.Dirs()[0]))
	if _, err := open(); err == nil {
		t.Error("a symbolic link in the place of an image was opened")
	}
}
