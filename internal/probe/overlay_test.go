package probe

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// No overlay can have its upper directory on an overlay, which is found out and nothing is left behind.
func TestOverlayOnAnOverlayIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to mount an overlay without a user namespace")
	}
	s, err := newScratch(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.remove()
	on := filepath.Join(t.TempDir(), "overlay")
	if err := os.Mkdir(on, 0o755); err != nil {
		t.Fatal(err)
	}
	opts := "lowerdir=l,upperdir=u,workdir=w,userxattr"
	t.Chdir(s.dir)
	if err := unix.Mount("overlay", on, "overlay", 0, opts); err != nil {
		t.Skip("needs overlays: ", err)
	}
	defer func() {
		if err := unix.Unmount(on, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	f, p := gather(t.Context(), on)
	p.reap()
	if f.Refused != nil {
		t.Skip("needs mounts: ", f.Refused)
	}
	if f.Overlay == 0 || f.Untried != "" || f.FSType != "overlay" {
		t.Errorf("%+v", f)
	}
	if e, p := tryOverlayAlone(on); e == 0 {
		t.Error("by itself it works")
	} else {
		p.reap()
	}
	if left, err := os.ReadDir(on); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// One overlay by itself is the same answer as that of the whole trial, and nothing is left.
func TestOverlayAloneAnswersAsGatherDoes(t *testing.T) {
	dir := t.TempDir()
	f, p := gather(t.Context(), dir)
	p.reap()
	e, p := tryOverlayAlone(dir)
	p.reap()
	if f.Refused == nil && e != f.Overlay || f.Refused != nil && e != unix.EPERM {
		t.Errorf("by itself %v, among others %v after %v", e, f.Overlay, f.Refused)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if e, p := tryOverlayAlone("/proc/self/task"); e == 0 {
		p.reap()
		t.Error("an overlay in /proc")
	}
}

func BenchmarkOverlayAlone(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		Overlay(dir)
	}
}
