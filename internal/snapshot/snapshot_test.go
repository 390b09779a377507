package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/snapshot"
	"den/internal/snapshot/snapshottest"
)

func TestEveryDriverKeepsTheContract(t *testing.T) {
	for _, d := range append(snapshot.Drivers(), snapshot.Images()) {
		t.Run(d.Name(), func(t *testing.T) {
			skip := map[string]string{}
			if d.Name() == snapshot.FuseOverlay {
				needFuse(t)
				skip["two files trade places"] = "needs hard links that writing divides to be shown as divided"
			}
			snapshottest.Run(t, d, skip)
		})
	}
}

func TestChoiceIsExplained(t *testing.T) {
	for _, c := range []struct {
		facts snapshot.Facts
		name  string
		words []string
	}{
		{snapshot.Facts{OverlayOK: true, OnOverlay: true}, "overlay", []string{"kernel"}},
		{snapshot.Facts{OnOverlay: true}, "copy", []string{"own overlay", "-v den:/var/lib/den", "tmpfs"}},
		{snapshot.Facts{OverlayErr: "operation not permitted"}, "copy", []string{"copies", "operation not permitted"}},
		{snapshot.Facts{OverlayOK: true, Images: true}, "erofs", []string{"without copying"}},
		{snapshot.Facts{Reflink: true}, "copy", []string{"sharing blocks"}},
		{snapshot.Facts{OnOverlay: true, Fuse: "/bin/fuse-overlayfs"}, "fuse-overlayfs", []string{"slower", "own overlay", "-v den:/var/lib/den"}},
		{snapshot.Facts{OverlayOK: true, Fuse: "/bin/fuse-overlayfs", Sentry: true}, "overlay", []string{"kernel"}},
		{snapshot.Facts{Fuse: "/bin/fuse-overlayfs", Sentry: true}, "fuse-overlayfs", nil},
		{snapshot.Facts{Sentry: true, OverlayErr: "EPERM"}, "", []string{"DEN_STORAGE_DRIVER=copy", "EPERM"}},
		{snapshot.Facts{Sentry: true, Reflink: true}, "copy", []string{"sharing blocks"}},
		{snapshot.Facts{Sentry: true, Force: "copy"}, "copy", []string{"asked for", "whole root"}},
		{snapshot.Facts{OverlayOK: true, Force: "vfs"}, "copy", []string{"asked for"}},
		{snapshot.Facts{OverlayOK: true, Force: "overlay2"}, "overlay", nil},
		{snapshot.Facts{Force: "btrfs"}, "copy", nil},
		{snapshot.Facts{OverlayOK: true, Fuse: "/bin/fuse-overlayfs", Force: "fuse-overlayfs"}, "fuse-overlayfs", []string{"asked for"}},
		{snapshot.Facts{OverlayOK: true, FuseErr: "there is no /dev/fuse", Force: "fuse-overlayfs"}, "", []string{"asked for", "/dev/fuse"}},
		{snapshot.Facts{OnOverlay: true, Force: "overlay"}, "", []string{"asked for", "own overlay"}},
		{snapshot.Facts{OverlayOK: true, Force: "nfs"}, "", []string{"unknown", "want auto"}},
	} {
		d, why := snapshot.Choose(c.facts)
		name := ""
		if d != nil {
			name = d.Name()
		}
		if name != c.name {
			t.Errorf("%+v: %q, want %q", c.facts, name, c.name)
		}
		for _, w := range c.words {
			if !strings.Contains(why, w) {
				t.Errorf("%+v: %q does not say %q", c.facts, why, w)
			}
		}
	}
}

func TestUnmergedIsWhatNoDriverMerges(t *testing.T) {
	for _, c := range []struct {
		facts snapshot.Facts
		want  string
	}{
		{snapshot.Facts{OverlayOK: true}, ""},
		{snapshot.Facts{OnOverlay: true}, "own overlay"},
		{snapshot.Facts{OverlayErr: "operation not permitted"}, "operation not permitted"},
		{snapshot.Facts{BareTmpfs: true, OverlayErr: "operation not supported"}, "before Linux 6.6"},
		{snapshot.Facts{OnOverlay: true, Force: "overlay2"}, "own overlay"},
		{snapshot.Facts{OnOverlay: true, Fuse: "/bin/fuse-overlayfs"}, ""},
		{snapshot.Facts{OnOverlay: true, Reflink: true}, ""},
		{snapshot.Facts{OnOverlay: true, Force: "copy"}, ""},
		{snapshot.Facts{OnOverlay: true, Force: "overlay"}, ""},
	} {
		if got := snapshot.Unmerged(c.facts); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.facts, got, c.want)
		}
	}
}

// needFuse skips where fuse-overlayfs cannot mount.
func needFuse(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(snapshot.FuseOverlay); err != nil {
		t.Skip("needs fuse-overlayfs")
	}
	if err := probe.Fuse(); err != nil {
		t.Skipf("needs FUSE mounts: %v", err)
	}
}

// plain is a tree that a user without privileges can make.
type plain struct {
	dir string
	snapshottest.Tree
}

func (p *plain) Dirs() []string { return []string{p.dir} }

func TestOverlayIsDescribedTopFirst(t *testing.T) {
	var stack []snapshot.Tree
	var want []string
	for i := range 3 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, &plain{dir: dir})
		want = append(want, dir)
	}
	slices.Reverse(want)
	draft := snapshottest.NewDraft(t)
	a, err := snapshot.Drivers()[0].Prepare(context.Background(), stack, draft)
	if err != nil {
		t.Fatal(err)
	}
	if m := a.Root; m.Type != "overlay" || m.Target != "/" || !slices.Equal(m.Lower, want) || m.Upper != draft.FS() || m.Work != draft.Work() {
		t.Errorf("%+v", m)
	}
	if want := []string{"userxattr", "index=off", "volatile"}; !slices.Equal(a.Root.Options, want) {
		t.Errorf("options %v, want %v", a.Root.Options, want)
	}
}

func TestTooManyLayersAreRefused(t *testing.T) {
	var stack []snapshot.Tree
	base := t.TempDir()
	for i := range 501 {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, &plain{dir: dir})
	}
	if _, err := snapshot.Drivers()[0].View(context.Background(), stack[1:]); err != nil {
		t.Errorf("500 layers: %v", err)
	}
	if _, err := snapshot.Drivers()[0].View(context.Background(), stack); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("501 layers: %v", err)
	}
}

func TestCopyOfATreeIsRemovedWithItsView(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	stack := []snapshot.Tree{&plain{dir: t.TempDir()}, &plain{dir: t.TempDir()}}
	for _, tr := range stack {
		if err := os.WriteFile(filepath.Join(tr.Dirs()[0], "f"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := snapshot.Choose(snapshot.Facts{})
	a, err := d.View(context.Background(), stack)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(a.Root.Source, "f")); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What the kernel takes away with a den that is killed is the program; its mount stays.
func TestMountsOfDeadProgramsAreReleased(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	needFuse(t)
	stack := []snapshot.Tree{snapshottest.NewTree(t, snapshottest.File("f", "x")), snapshottest.NewTree(t, snapshottest.File("g", "x"))}
	d, _ := snapshot.Choose(snapshot.Facts{Fuse: snapshot.FuseOverlay})
	draft := snapshottest.NewDraft(t)
	a, err := d.Prepare(context.Background(), stack, draft)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	store := filepath.Dir(draft.FS())
	if err := snapshot.ReleaseDead(store); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(a.Root.Source, "f")); err != nil {
		t.Fatalf("one that lives was released: %v", err)
	}
	killServer(t, a.Root.Source)
	var st unix.Statfs_t
	for deadline := time.Now().Add(time.Minute); !errors.Is(unix.Statfs(a.Root.Source, &st), unix.ENOTCONN); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the mount outlives its program")
		}
	}
	if err := snapshot.ReleaseDead(store); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(a.Root.Source); err != nil || len(left) != 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}

// killServer kills the program that was started for the mount at root.
func killServer(t *testing.T, root string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if !strings.HasSuffix(string(data), "\x00"+root+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(f, "/")[2])
		if err == nil {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("nobody serves %s", root)
}
