package probe

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
