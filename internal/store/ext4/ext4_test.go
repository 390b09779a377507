package ext4

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// newImage formats a sparse file.
func newImage(t testing.TB, sizeBytes int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := Format(f, sizeBytes); err != nil {
		t.Fatal(err)
	}
	return f
}

// check has e2fsck find nothing to repair.
func check(t testing.TB, f *os.File) {
	t.Helper()
	path, err := exec.LookPath("e2fsck")
	if err != nil {
		if path = "/usr/sbin/e2fsck"; exec.Command(path, "-V").Run() != nil {
			t.Skip("needs e2fsck")
		}
	}
	if out, err := exec.Command(path, "-f", "-n", f.Name()).CombinedOutput(); err != nil || strings.Contains(string(out), "Fix?") {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func allocated(t testing.TB, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestCheckerFindsNothingToRepair(t *testing.T) {
	for name, groups := range map[string]int64{
		"one group": 1, "two groups": 2, "part of a meta group": 20, "whole meta group": groupsPerMeta, "a group more": groupsPerMeta + 1, "100 GiB": 800,
	} {
		t.Run(name, func(t *testing.T) {
			f := newImage(t, groups*GroupBytes)
			check(t, f)
			if got, err := Bytes(f); err != nil || got != groups*GroupBytes {
				t.Errorf("size %d, %v", got, err)
			}
			if n := allocated(t, f); n > 1<<20 {
				t.Errorf("an empty file system takes %d bytes", n)
			}
		})
	}
}

func TestGrownFileSystemNeedsNoRepair(t *testing.T) {
	for _, c := range []struct{ from, to int64 }{{1, 2}, {1, 20}, {20, 127}, {20, 128}, {1, 129}, {2, 300}, {126, 128}, {127, 256}, {128, 129}, {129, 131}} {
		f := newImage(t, c.from*GroupBytes)
		if err := Grow(f, c.to*GroupBytes); err != nil {
			t.Errorf("from %d to %d groups: %v", c.from, c.to, err)
			continue
		}
		check(t, f)
		if got, err := Bytes(f); err != nil || got != c.to*GroupBytes {
			t.Errorf("from %d to %d groups: size %d, %v", c.from, c.to, got, err)
		}
	}
}

func TestGrowthFinishesAnInterruptedOne(t *testing.T) {
	f := newImage(t, GroupBytes)
	// The end of the file is of another try: garbage where zeros are expected.
	if _, err := f.WriteAt([]byte(strings.Repeat("x", 3*blockBytes)), GroupBytes+20*blockBytes); err != nil {
		t.Fatal(err)
	}
	if err := Grow(f, 3*GroupBytes); err != nil {
		t.Fatal(err)
	}
	check(t, f)
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, GroupBytes+20*blockBytes); err != nil || b[0] != 0 {
		t.Errorf("a new inode table begins with %q, %v", b, err)
	}
}

func TestGrowthChecksWhatItGrows(t *testing.T) {
	f := newImage(t, 2*GroupBytes)
	if err := Grow(f, GroupBytes); err != nil {
		t.Errorf("smaller: %v", err)
	}
	if got, err := Bytes(f); err != nil || got != 2*GroupBytes {
		t.Errorf("it shrank to %d, %v", got, err)
	}
	change := func(at int, v byte) {
		t.Helper()
		s, err := readSuper(f)
		if err != nil {
			t.Fatal(err)
		}
		s[at] = v
		s.sign()
		if _, err := f.WriteAt(s, superOffset); err != nil {
			t.Fatal(err)
		}
	}
	change(0x60, incompatFeatures|needsRecovery)
	if err := Grow(f, 3*GroupBytes); !errors.Is(err, ErrUnclean) {
		t.Errorf("with a journal to recover: %v", err)
	}
	change(0x60, incompatFeatures|0x80) // 64bit
	if err := Grow(f, 3*GroupBytes); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of another shape: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), superOffset+8); err != nil {
		t.Fatal(err)
	}
	if err := Grow(f, 3*GroupBytes); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("with a wrong checksum: %v", err)
	}
}

func TestSizesAreWholeGroups(t *testing.T) {
	for in, want := range map[int64]int64{1: GroupBytes, GroupBytes: GroupBytes, GroupBytes + 1: 2 * GroupBytes, MaxBytes: MaxBytes} {
		if got, err := Size(in); err != nil || got != want {
			t.Errorf("%d: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []int64{0, -1, MaxBytes + 1} {
		if got, err := Size(in); err == nil {
			t.Errorf("%d: %d", in, got)
		}
	}
}

func FuzzGrow(f *testing.F) {
	img := newImage(f, GroupBytes)
	super := make([]byte, superBytes)
	if _, err := img.ReadAt(super, superOffset); err != nil {
		f.Fatal(err)
	}
	f.Add(super)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), superBytes)]
		x, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if _, err := x.WriteAt(b, superOffset); err != nil {
			t.Fatal(err)
		}
		if len(b) == superBytes {
			superblock(b).sign()
			if _, err := x.WriteAt(b, superOffset); err != nil {
				t.Fatal(err)
			}
		}
		_ = Grow(x, 2*GroupBytes)
		if info, err := x.Stat(); err != nil || info.Size() > MaxBytes {
			t.Errorf("%v, %v", info, err)
		}
	})
}
