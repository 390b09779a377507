package daemon

import (
	"os"
	"strings"
	"testing"

	"den/internal/store/backing"
	"den/internal/sys"
)

func TestStoreInMemorySaysSoWhenItIsMade(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "den-ground-")
	if err != nil {
		t.Skipf("needs a tmpfs: %v", err)
	}
	defer os.RemoveAll(dir)
	if fs, err := sys.FSName(dir); err != nil || fs != "tmpfs" {
		t.Skipf("needs a tmpfs at /dev/shm: %s, %v", fs, err)
	}
	for i, want := range []int{1, 0} {
		said := 0
		d, err := Open(t.Context(), Options{StoreRoot: dir + "/store", DataRoot: t.TempDir(), Notice: func(s string) {
			if strings.Contains(s, "is in memory: a tmpfs of ") && strings.Contains(s, "--max-size") {
				said++
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		g, err := d.Ground()
		if err != nil || g.TmpfsBytes <= 0 || g.CapBytes() <= 0 || g.CapBytes() > g.TmpfsBytes || g.Image != nil {
			t.Errorf("%+v, %v", g, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if said != want {
			t.Errorf("opened %d times, it is said %d times", i+1, said)
		}
	}
}

func TestLowerOfTheTwoBoundsIsTheCap(t *testing.T) {
	for _, c := range []struct {
		g    Ground
		cap  int64
		want string
	}{
		{Ground{}, 0, ""},
		{Ground{TmpfsBytes: 4 << 30}, 4 << 30, "memory: a tmpfs of 4GiB"},
		{Ground{TmpfsBytes: 4 << 30, MemoryLimitBytes: 2 << 30}, 2 << 30, "a container that may have 2GiB"},
		{Ground{TmpfsBytes: 1 << 30, MemoryLimitBytes: 2 << 30}, 1 << 30, "a tmpfs of 1GiB"},
		{Ground{Image: &backing.Usage{Path: "/d/i", Device: "/dev/loop3", SizeBytes: 1 << 30, HostBytes: 1 << 20}}, 0, "image of 1GiB on /dev/loop3, takes 1MiB: /d/i"},
	} {
		if got := c.g.String(); c.g.CapBytes() != c.cap || !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%+v: cap %d, %q", c.g, c.g.CapBytes(), got)
		}
	}
}
