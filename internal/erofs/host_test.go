package erofs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel is the other implementation of the format.
func TestKernelShowsTheSameTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the test mounts an image")
	}
	items := variety()
	for i := range 700 { // a directory of several blocks
		items = append(items, reg("many/"+strings.Repeat("n", i%120)+string(rune('a'+i%26))+"!"[:i%2], ""))
	}
	path := write(t, Options{}, items...)
	target := mount(t, path)
	var want []string
	for _, line := range read(t, path) {
		if i := strings.IndexAny(line, "="); i > 0 && strings.Contains(line, "\"") && !strings.Contains(line, " -> ") {
			line = line[:strings.LastIndexByte(line[:i], ' ')] // attributes are the sidecar's
		}
		want = append(want, strings.TrimSuffix(line, " opaque"))
	}
	check(t, walkDisk(t, target), want)
	if names, _ := os.ReadDir(filepath.Join(mount(t, path+OpaqueSuffix), "var")); len(names) != 1 {
		t.Errorf("the image of opaque directories holds %v in var", names)
	}
}

func TestFsckFindsNothing(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("needs fsck.erofs (erofs-utils)")
	}
	path := write(t, Options{}, variety()...)
	for _, image := range []string{path, path + OpaqueSuffix} {
		if out, err := exec.CommandContext(t.Context(), fsck, image).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
	}
}

// mount mounts an image on a loop device.
func mount(t *testing.T, image string) string {
	t.Helper()
	target := t.TempDir()
	// mount(8) finds a loop device and lets it go with the mount.
	out, err := exec.CommandContext(t.Context(), "mount", "-t", "erofs", "-o", "ro,loop", image, target).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "unknown filesystem") || strings.Contains(string(out), "loop") {
			t.Skipf("needs EROFS and loop devices: %s", out)
		}
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("umount %s: %v", target, err)
		}
	})
	return target
}

// walkDisk describes what is on disk as read describes an image.
func walkDisk(t *testing.T, root string) (lines []string) {
	r := &Reader{path: "/no such image"} // without attributes
	var walk func(rel string)
	walk = func(rel string) {
		path := filepath.Join(root, rel)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		n := Inode{
			Mode: st.Mode, UID: st.Uid, GID: st.Gid, Links: uint32(st.Nlink), Size: st.Size, Rdev: st.Rdev,
			Whiteout: st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFLNK:
			lines = append(lines, describeFile(t, path, rel, n))
			return
		}
		lines = append(lines, describe(t, r, rel, n))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			list, err := os.ReadDir(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				walk(filepath.Join(rel, e.Name()))
			}
		}
	}
	walk(".")
	return lines
}

// describeFile describes a file whose content the kernel reads.
func describeFile(t *testing.T, path, rel string, n Inode) string {
	var data []byte
	if n.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		data = []byte(target)
	} else {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	n.at = 0
	return describe(t, &Reader{f: f, path: f.Name(), size: n.Size}, rel, n)
}
