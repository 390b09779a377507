package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/snapshot"
	"den/internal/snapshot/snapshottest"
)

func TestEveryDriverKeepsTheContract(t *testing.T) {
	for _, d := range snapshot.Drivers() {
		t.Run(d.Name(), func(t *testing.T) { snapshottest.Run(t, d) })
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
		{snapshot.Facts{Reflink: true}, "copy", []string{"sharing blocks"}},
	} {
		d, why := snapshot.Choose(c.facts)
		if d.Name() != c.name {
			t.Errorf("%+v: %s, want %s", c.facts, d.Name(), c.name)
		}
		for _, w := range c.words {
			if !strings.Contains(why, w) {
				t.Errorf("%+v: %q does not say %q", c.facts, why, w)
			}
		}
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
