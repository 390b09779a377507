package ops

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tick returns after a step of the kernel's clock for files.
func tick(t *testing.T) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "clock")
	stamp := func() time.Time {
		check(t, os.WriteFile(p, nil, 0o644))
		info, err := os.Stat(p)
		check(t, err)
		return info.ModTime()
	}
	for start := stamp(); stamp().Equal(start); {
	}
}

// remembered walks dir and pretends that nothing in it was written lately.
func remembered(t *testing.T, dir string) (*localEntry, *localCache) {
	t.Helper()
	root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	root.each(func(e *localEntry) { e.racy = false })
	return root, parseLocalCache(encodeLocalCache(root))
}

func TestUnchangedFileIsNotReadAgain(t *testing.T) {
	dir := plant(t, t.TempDir(), "a", "d/b", "link -> a")
	first, cache := remembered(t, dir)
	if len(cache.files) != 2 {
		t.Fatalf("%d files are remembered, want 2", len(cache.files))
	}
	for p, k := range cache.files { // what is remembered shows whether it is believed
		k.digest[0] ^= 0xff
		cache.files[p] = k
	}
	again, err := walkLocal(t.Context(), dir, localFilter{}, cache)
	check(t, err)
	again.children[0].digest[0] ^= 0xff
	if again.children[0].digest != first.children[0].digest {
		t.Error("file was read again")
	}
}

func TestChangedFileIsReadAgain(t *testing.T) {
	for name, change := range map[string]func(p string) error{
		"content of another length": func(p string) error { return os.WriteFile(p, []byte("longer than before, by far"), 0o644) },
		"content of equal length with the old time": func(p string) error {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(p, []byte("CONTENT OF a"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, time.Time{}, info.ModTime())
		},
		"mode": func(p string) error { return os.Chmod(p, 0o755) },
		"replaced": func(p string) error {
			if err := os.WriteFile(p+"~", []byte("CONTENT OF a"), 0o644); err != nil {
				return err
			}
			return os.Rename(p+"~", p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := plant(t, t.TempDir(), "a")
			old, cache := remembered(t, dir)
			tick(t)
			check(t, change(filepath.Join(dir, "a")))
			got, err := walkLocal(t.Context(), dir, localFilter{}, cache)
			check(t, err)
			if got.children[0].digest == old.children[0].digest {
				t.Error("the change was not noticed")
			}
			if !cache.stale(got) && !got.children[0].racy {
				t.Error("the cache is not renewed")
			}
		})
	}
}

func TestJustWrittenFileIsNotRemembered(t *testing.T) {
	dir := plant(t, t.TempDir(), "fresh")
	root, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	if n := len(parseLocalCache(encodeLocalCache(root)).files); n != 0 {
		t.Errorf("%d files are remembered, want 0", n)
	}
}

func TestDamagedStatCacheIsEmpty(t *testing.T) {
	_, cache := remembered(t, plant(t, t.TempDir(), "a", "b"))
	if len(cache.files) != 2 {
		t.Fatal(cache.files)
	}
	root, err := walkLocal(t.Context(), plant(t, t.TempDir(), "a", "b"), localFilter{}, nil)
	check(t, err)
	root.each(func(e *localEntry) { e.racy = false })
	good := encodeLocalCache(root)
	for n := range good {
		if c := parseLocalCache(good[:n]); len(c.files) != 0 {
			t.Fatalf("%d of %d bytes give %d files", n, len(good), len(c.files))
		}
	}
}

func FuzzStatCache(f *testing.F) {
	f.Add([]byte(localCacheMagic))
	f.Add([]byte(localCacheMagic + "\x01\x01a\x00\x00\x00\x00\x0000000000000000000000000000000000"))
	f.Fuzz(func(t *testing.T, dt []byte) {
		c := parseLocalCache(dt)
		for p := range c.files {
			if len(p) > len(dt) {
				t.Error("a path from nowhere")
			}
		}
	})
}

func TestStatCacheNameDependsOnFilter(t *testing.T) {
	a := localCacheName("/x", localFilter{Include: []string{"a", "b"}})
	b := localCacheName("/x", localFilter{Include: []string{"a"}, Exclude: []string{"b"}})
	if diff := cmp.Diff(a, b); diff == "" {
		t.Error("equal")
	}
}
