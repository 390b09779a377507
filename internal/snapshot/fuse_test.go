package snapshot

import (
	"slices"
	"testing"
)

func TestOnlyFuseOverlayMountsBelowADirectoryAreFound(t *testing.T) {
	const info = `36 35 98:0 / /store/tmp/a/work/root rw,noatime shared:1 - fuse.fuse-overlayfs fuse-overlayfs rw
37 35 98:0 / /store/with\040space/root rw - fuse.fuse-overlayfs fuse-overlayfs rw
38 35 98:0 / /storey/root rw - fuse.fuse-overlayfs fuse-overlayfs rw
39 35 98:0 / /store/other rw - fuse.sshfs x rw
40 35 98:0 / /store/x rw
x
`
	got := fuseMounts(info, "/store")
	if want := []string{"/store/tmp/a/work/root", "/store/with space/root"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:0 / /store/root rw - fuse.fuse-overlayfs x rw\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range fuseMounts(s, "/store") {
			if len(p) <= len("/store/") {
				t.Errorf("%q", p)
			}
		}
	})
}
