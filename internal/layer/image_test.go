package layer

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Whoever runs it: an image keeps what no process of this user could make.
func TestImageKeepsEveryOwnerAndDevice(t *testing.T) {
	su := reg("bin/su", "su")
	su.UID, su.GID, su.Mode = 0, 42, unix.S_IFREG|0o6755
	far := reg("far", "")
	far.UID, far.GID = 1<<32-2, 1<<31
	ping := reg("bin/ping", "ping")
	ping.Xattrs = map[string][]byte{sys.CapabilityAttr: []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	null := entry("dev/null", unix.S_IFCHR|0o666)
	null.Rdev = unix.Mkdev(1, 3)
	shut := dir("shut")
	shut.Mode = unix.S_IFDIR
	data, want := tarOf(t, sorted(dir("bin"), su, far, ping, dir("dev"), null, shut, reg("shut/in", "x"), whiteoutOf("gone")))
	f := form{image: true}
	for _, inUserns := range []bool{false, true} {
		tree := f.new(t)
		got, err := Unpack(context.Background(), bytes.NewReader(data), tree, f.with(UnpackOptions{InUserns: inUserns}))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if again, _ := tarOf(t, WalkUpper(tree)); !bytes.Equal(data, again) {
			t.Errorf("the tar of the image differs:\n%s", cmp.Diff(names(t, data), names(t, again)))
		}
	}
}

func TestFilesOfAnImageOpenAfterTheWalk(t *testing.T) {
	eachForm(t, func(t *testing.T, f form) {
		tree := f.new(t)
		if err := Create(context.Background(), tree, sorted(dir("d"), reg("d/a", "one"), reg("d/b", "two")), f.with(UnpackOptions{})); err != nil {
			t.Fatal(err)
		}
		var got string
		var files []File
		for f, err := range WalkUpper(tree) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Open != nil {
				files = append(files, f)
			}
		}
		for _, f := range files {
			rc, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			if err := rc.Close(); err != nil {
				t.Fatal(err)
			}
			got += string(b)
		}
		if got != "onetwo" {
			t.Errorf("read %q", got)
		}
	})
}

func TestImageIsNeverMadeOverAFile(t *testing.T) {
	f := form{image: true}
	tree := f.new(t)
	if err := os.WriteFile(tree, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(context.Background(), tree, all(reg("a", "1")), f.with(UnpackOptions{})); err == nil {
		t.Error("no error")
	}
	if b, err := os.ReadFile(tree); err != nil || string(b) != "somebody's" {
		t.Errorf("%q, %v", b, err)
	}
}
