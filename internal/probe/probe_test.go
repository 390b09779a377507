package probe

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestGatherLeavesTheDirectoryAsItWas(t *testing.T) {
	dir := t.TempDir()
	f, p := gather(t.Context(), dir+"/not/there/yet")
	p.reap()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if f.FSType == "" || f.Kernel == "" {
		t.Errorf("facts are empty: %+v", f)
	}
	if f.Userns.Refused == nil && f.IDs.Missing == "" && f.Userns.Overlay != 0 {
		t.Errorf("user namespaces mount, but not an overlay: %v", f.Userns.Overlay)
	}
	if refused := f.Chroot.Refused != 0; refused == f.CapEff.Has(unix.CAP_SYS_CHROOT) {
		t.Errorf("chroot answers %v to capabilities %v", f.Chroot.Refused, f.CapEff.Names())
	}
	t.Logf("%+v, refused %v, in a user namespace %v", f, f.Refused, f.Userns.Refused)
}

func TestSubidLinesOfTheUserLineUpFromOne(t *testing.T) {
	const file = "# comment\nother:1:2\nme:100000:65536\n 1000:300000:10 \nme:x:3\nme:4\nme:5:0\nme:4294967295:7\n"
	got := parseSubid(strings.NewReader(file), "me", 1000)
	want := []IDMap{{Inside: 1, Outside: 100000, Count: 65536}, {Inside: 65537, Outside: 300000, Count: 10}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatNewuidmapLacksIsSaidAtOnce(t *testing.T) {
	good := helpers{uid: 1000, name: "me", found: true, caps: true}
	for _, c := range []struct {
		name   string
		change func(*helpers)
		want   []string // each a part of its own
	}{
		{"nothing", func(*helpers) {}, nil},
		{"root without capabilities", func(h *helpers) { *h = helpers{} }, []string{"--cap-add SETUID --cap-add SETGID --cap-add SETFCAP"}},
		{"a user namespace of one id", func(h *helpers) { h.oneID, h.found, h.caps = true, false, false }, []string{"has one id only"}},
		{"not installed", func(h *helpers) { h.found = false }, []string{"install the package uidmap"}},
		{"no setuid bit", func(h *helpers) { h.powerless = "/x/newgidmap" }, []string{"/x/newgidmap is neither setuid"}},
		{"no line", func(h *helpers) { h.ranges = errors.New("/etc/subuid has no line for me") }, []string{"no line for me: usermod --add-subuids 100000-165535"}},
		{"restricted", func(h *helpers) { *h = helpers{uid: 1000, noNewPrivs: true, ranges: os.ErrNotExist} },
			[]string{"without no-new-privileges", "--cap-add SETUID", "package uidmap", "useradd --uid 1000 NAME", "usermod"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := good
			c.change(&h)
			got := strings.Split(h.missing(), "; ")
			if len(c.want) == 0 {
				c.want = []string{""}
			}
			if len(got) != len(c.want) {
				t.Fatalf("%q, want %q", got, c.want)
			}
			for i, w := range c.want {
				if !strings.Contains(got[i], w) {
					t.Errorf("%q does not say %q", got[i], w)
				}
			}
		})
	}
}

func FuzzSubid(f *testing.F) {
	f.Add("me:100000:65536\n")
	f.Fuzz(func(t *testing.T, s string) {
		inside := uint64(1)
		for _, m := range parseSubid(strings.NewReader(s), "me", 1000) {
			if uint64(m.Inside) != inside || m.Count == 0 {
				t.Fatalf("gap at %+v", m)
			}
			inside += uint64(m.Count)
		}
	})
}

func BenchmarkGather(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		Gather(b.Context(), dir)
	}
}

func TestATrialThatRanOutOfTimeRefusesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	f := Gather(ctx, t.TempDir())
	for _, r := range []*Refusal{f.Refused, f.Userns.Refused} {
		if r == nil || !r.Unfinished || !strings.Contains(r.Error(), "in time") {
			t.Errorf("%+v", r)
		}
	}
}
