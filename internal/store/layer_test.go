package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

func TestPublishedLayerIsFoundAgain(t *testing.T) {
	s := tempStore(t)
	l, err := publishLayer(t.Context(), s, "a")
	must(t, err)
	must(t, l.Close())
	again, err := s.Layer(t.Context(), l.DiffID())
	must(t, err)
	defer again.Close()
	if diff := cmp.Diff(l.Meta(), again.Meta()); diff != "" {
		t.Error(diff)
	}
	data, err := os.ReadFile(filepath.Join(again.Dirs()[0], "file"))
	if err != nil || string(data) != "a" {
		t.Errorf("got %q, %v", data, err)
	}
	if exists(filepath.Join(filepath.Dir(again.Dirs()[0]), workDir)) {
		t.Error("the work directory was published")
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestPublishRemovesTheWorkDirectory(t *testing.T) {
	s := tempStore(t)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	must(t, os.Mkdir(filepath.Join(d.Work(), "work"), 0)) // as the kernel does
	l, err := d.Publish(t.Context(), LayerMeta{DiffID: digest.FromString("x")})
	must(t, err)
	must(t, l.Close())
	mustBeSound(t, s)
}

func TestSecondPublisherAdoptsTheFirst(t *testing.T) {
	s := tempStore(t)
	first, err := publishLayer(t.Context(), s, "a")
	must(t, err)
	defer first.Close()
	second, err := publishLayer(t.Context(), s, "a")
	must(t, err)
	defer second.Close()
	if diff := cmp.Diff(first.Dirs(), second.Dirs()); diff != "" {
		t.Error(diff)
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestDeltaShowsTheTreesBelowIt(t *testing.T) {
	s := tempStore(t)
	bottom := putLayer(t, s, "bottom")
	middle := putLayer(t, s, "middle", bottom)
	top := putLayer(t, s, "top", middle, bottom)
	l, err := s.Layer(t.Context(), top)
	must(t, err)
	defer l.Close()
	var got []string
	for _, dir := range l.Dirs() {
		data, err := os.ReadFile(filepath.Join(dir, "file"))
		must(t, err)
		got = append(got, string(data))
	}
	if diff := cmp.Diff([]string{"top", "middle", "bottom"}, got); diff != "" {
		t.Error(diff)
	}
	if len(l.Hold()) != 3 {
		t.Errorf("%d leases for three trees", len(l.Hold()))
	}
}

func TestDeltaOverNothingIsRefused(t *testing.T) {
	s := tempStore(t)
	if _, err := publishLayer(t.Context(), s, "top", digest.FromString("nothing")); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	mustBeSound(t, s)
}

func TestDamagedLayerIsAMissAndMakesRoom(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, s *Store, id oci.Digest){
		"torn metadata": func(t *testing.T, s *Store, id oci.Digest) {
			must(t, os.Truncate(s.path(layerObject(s.class, s.LayerID(id)).rel(), metaFile), 3))
		},
		"lost tree below": func(t *testing.T, s *Store, id oci.Digest) {
			l, err := s.Layer(t.Context(), id)
			must(t, err)
			must(t, l.Close())
			must(t, os.RemoveAll(filepath.Dir(l.Dirs()[1])))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tempStore(t)
			below := putLayer(t, s, "below")
			id := putLayer(t, s, "a", below)
			damage(t, s, id)
			_, err := s.Layer(t.Context(), id)
			mustBeGone(t, err)
			putLayer(t, s, "below")
			putLayer(t, s, "a", below)
			mustBeSound(t, s)
		})
	}
}

func TestLockedLayerCostsAPrivateCopy(t *testing.T) {
	s := tempStore(t)
	s.busyWait = 0
	id := putLayer(t, s, "a")
	f, err := os.Open(s.path(layerObject(s.class, s.LayerID(id)).rel()))
	must(t, err)
	defer f.Close()
	must(t, sys.Flock(f, unix.LOCK_EX))
	l, err := publishLayer(t.Context(), s, "a")
	must(t, err)
	if data, err := os.ReadFile(filepath.Join(l.Dirs()[0], "file")); err != nil || string(data) != "a" {
		t.Errorf("got %q, %v", data, err)
	}
	must(t, l.Close())
	if exists(l.Dirs()[0]) {
		t.Error("the private copy stays")
	}
}

func TestClosedDraftLeavesNothing(t *testing.T) {
	s := tempStore(t)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	must(t, os.Mkdir(filepath.Join(d.Work(), "work"), 0)) // as the kernel does
	shut := filepath.Join(d.FS(), "a", "b")
	must(t, os.MkdirAll(shut, 0o755))
	must(t, os.Chmod(shut, 0))
	must(t, os.Chmod(filepath.Dir(shut), 0))
	must(t, errors.Join(d.Close(), d.Close()))
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
	if _, err := d.Publish(t.Context(), LayerMeta{DiffID: digest.FromString("x")}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("publishing a closed draft: %v", err)
	}
}

func TestLayersOfOtherClassesAreOfNoUse(t *testing.T) {
	s := tempStore(t)
	id := putLayer(t, s, "a")
	other := openStore(t, s.Root(), t.TempDir())
	other.class = "m0123456789abcdef"
	if s.LayerID(id) == other.LayerID(id) {
		t.Error("one id in two classes")
	}
	_, err := other.Layer(t.Context(), id)
	mustBeGone(t, err)
	putLayer(t, other, "a")
	mustBeSound(t, s)
}

func TestFirstRecordStays(t *testing.T) {
	s := tempStore(t)
	key := digest.FromString("key")
	_, err := s.Record(t.Context(), key)
	mustBeGone(t, err)
	first, second := Record{Op: "first", Data: []byte(`{"a":1}`)}, Record{Op: "second"}
	for _, r := range []Record{first, second} {
		got, err := s.PutRecord(t.Context(), key, r, false)
		must(t, err)
		if diff := cmp.Diff(&first, got); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := s.PutRecord(t.Context(), key, second, true); err != nil {
		t.Fatal(err)
	}
	got, err := s.Record(t.Context(), key)
	must(t, err)
	if got.Op != "second" {
		t.Errorf("replaced: got %q", got.Op)
	}
}

func TestRecordThatDoesNotParseIsReplaced(t *testing.T) {
	s := tempStore(t)
	key := digest.FromString("key")
	for _, text := range []string{"", "{", `{"layers":["sha256:../../etc"]}`} {
		must(t, os.MkdirAll(filepath.Dir(s.recordPath(key)), 0o755))
		must(t, os.WriteFile(s.recordPath(key), []byte(text), 0o644))
		_, err := s.Record(t.Context(), key)
		mustBeGone(t, err)
		got, err := s.PutRecord(t.Context(), key, Record{Op: "new"}, false)
		must(t, err)
		if got.Op != "new" {
			t.Errorf("after %q: got %q", text, got.Op)
		}
	}
}

func TestReferencesOfEnginesAreApart(t *testing.T) {
	a := tempStore(t)
	b := openStore(t, a.Root(), t.TempDir())
	must(t, a.SetRef(t.Context(), Ref{Name: "app:test", Record: Record{Op: "a"}}))
	_, err := b.Ref(t.Context(), "app:test")
	mustBeGone(t, err)
	must(t, b.SetRef(t.Context(), Ref{Name: "app:test", Record: Record{Op: "b"}}))
	must(t, b.DeleteRef(t.Context(), "app:test"))
	got, err := a.Ref(t.Context(), "app:test")
	must(t, err)
	if got.Op != "a" {
		t.Errorf("got %q", got.Op)
	}
	mustBeGone(t, b.DeleteRef(t.Context(), "app:test"))
}

func TestPulledReferencesAreShared(t *testing.T) {
	a := tempStore(t)
	b := openStore(t, a.Root(), t.TempDir())
	for _, name := range []string{"docker.io/library/debian:13", "docker.io/library/alpine:3"} {
		must(t, a.SetPulledRef(t.Context(), Ref{Name: name}))
	}
	refs, err := b.PulledRefs(t.Context())
	must(t, err)
	if len(refs) != 2 || refs[0].Name != "docker.io/library/alpine:3" {
		t.Errorf("got %v", refs)
	}
	if own, err := b.Refs(t.Context()); len(own) > 0 || err != nil {
		t.Errorf("own references: %v, %v", own, err)
	}
	must(t, b.DeletePulledRef(t.Context(), refs[0].Name))
	_, err = a.PulledRef(t.Context(), refs[0].Name)
	mustBeGone(t, err)
}

func TestDerivedMemoIsWholeOrAbsent(t *testing.T) {
	s := tempStore(t)
	_, err := s.Derived("stat cache of /src")
	mustBeGone(t, err)
	for _, text := range []string{"one", "", "two"} {
		must(t, s.PutDerived("stat cache of /src", []byte(text)))
		got, err := s.Derived("stat cache of /src")
		if err != nil || string(got) != text {
			t.Errorf("got %q, %v", got, err)
		}
	}
	must(t, os.WriteFile(s.derivedPath("stat cache of /src"), []byte{0, 0, 0, 0, 'x'}, 0o644))
	_, err = s.Derived("stat cache of /src")
	mustBeGone(t, err)
}

func TestLayerTakesNoMoreThanItSays(t *testing.T) {
	s := tempStore(t)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	var tree int64
	for i := range 100 {
		text := strings.Repeat("x", 50*i)
		must(t, os.WriteFile(filepath.Join(d.FS(), fmt.Sprint(i)), []byte(text), 0o644))
		must(t, os.Mkdir(filepath.Join(d.FS(), fmt.Sprint("dir", i)), 0o755))
		tree += int64(len(text))
	}
	l, err := d.Publish(t.Context(), LayerMeta{DiffID: digest.FromString("many"), SizeBytes: 1 << 19, TreeBytes: tree, Entries: 200})
	must(t, err)
	defer l.Close()
	wrapper := filepath.Dir(l.Dirs()[0])
	if said, takes := l.Meta().diskBytes(), diskUsage(t, wrapper); takes > said || takes*3 < said {
		t.Errorf("says %d and takes %d", said, takes)
	}
}

// diskUsage is what du(1) says.
func diskUsage(t testing.TB, path string) int64 {
	t.Helper()
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // others use the store
		}
		if err == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return err
	})
	must(t, err)
	return sum
}
