package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// inNamespace is set for the copy of the test that runs in a user namespace.
const inNamespace = "DEN_TEST_LAYER_DIR"

// TestUnpackInAUserNamespace runs itself again with ids 0 to 999 mapped to
// 100000 and up: owners are kept, devices recorded, capabilities set.
func TestUnpackInAUserNamespace(t *testing.T) {
	if dir := os.Getenv(inNamespace); dir != "" {
		unpackMapped(t, dir)
		return
	}
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chown(dir, 100000, 100000); err != nil {
		t.Fatal(err)
	}
	for p := dir; p != filepath.Clean(os.TempDir()) && p != "/"; p = filepath.Dir(p) { // what t.TempDir made, for root alone
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(dir, "self")
	if err := os.WriteFile(self, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestUnpackInAUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"="+dir, "TMPDIR="+dir)
	cmd.Dir = "/"
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("needs user namespaces: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS") {
		t.Errorf("the copy did not run:\n%s", out)
	}
}

func unpackMapped(t *testing.T, dir string) {
	web := reg("web", "x")
	web.UID, web.GID, web.Mode = 33, 44, unix.S_IFREG|0o6755
	ping := reg("ping", "x")
	ping.Xattrs = map[string][]byte{sys.CapabilityAttr: []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	null := entry("null", unix.S_IFCHR|0o666)
	null.Rdev = unix.Mkdev(1, 3)
	data, want := tarOf(t, sorted(web, ping, null, whiteoutOf("gone")))
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Unpack(context.Background(), bytes.NewReader(data), tree, UnpackOptions{InUserns: true})
	if err != nil {
		t.Fatal(err)
	}
	want.Devices = 1
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if again, _ := tarOf(t, WalkUpper(tree)); !bytes.Equal(data, again) {
		t.Errorf("the tar of the tree differs: %q, want %q", names(t, again), names(t, data))
	}
	if _, err := Unpack(context.Background(), bytes.NewReader(data), t.TempDir(), UnpackOptions{}); err == nil || !strings.Contains(err.Error(), "CAP_MKNOD") {
		t.Errorf("a device node: %v", err)
	}
	web.UID = 70000
	data, _ = tarOf(t, sorted(web))
	_, err = Unpack(context.Background(), bytes.NewReader(data), t.TempDir(), UnpackOptions{InUserns: true})
	if err == nil || !strings.Contains(err.Error(), "at least 70001 ids in /etc/subuid") {
		t.Errorf("an owner outside of the range: %v", err)
	}
}

func TestFullDiskIsAClearError(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("needs mounts: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	large := entry("large", unix.S_IFREG|0o644)
	large.Size = 1 << 20
	large.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(xs{}, large.Size)), nil }
	data, _ := tarOf(t, all(large))
	for name, fn := range map[string]func(tree string, o UnpackOptions) error{
		"unpack": func(tree string, o UnpackOptions) error {
			_, err := Unpack(context.Background(), bytes.NewReader(data), tree, o)
			return err
		},
		"build": func(tree string, o UnpackOptions) error {
			_, err := Build(context.Background(), tree, all(large), o)
			return err
		},
		"create": func(tree string, o UnpackOptions) error { return Create(context.Background(), tree, all(large), o) },
	} {
		for _, f := range forms() {
			tree := f.at(t, filepath.Join(dir, name+f.String()))
			if err := fn(tree, f.with(UnpackOptions{})); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "large") {
				t.Errorf("%s %s: %v", name, f, err)
			}
			if _, err := os.Lstat(tree); f.image && !os.IsNotExist(err) {
				t.Errorf("%s left an image: %v", name, err)
			}
			if err := os.RemoveAll(tree); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDescriptorsAreGivenBack(t *testing.T) {
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("needs /proc: %v", err)
		}
		return len(fds)
	}
	eachForm(t, func(t *testing.T, f form) {
		tree := f.new(t)
		if err := Create(context.Background(), tree, sorted(dir("d"), reg("d/a", "1"), reg("d/b", strings.Repeat("x", 200000)), dir("d/e"), reg("z", "2")), f.with(UnpackOptions{})); err != nil {
			t.Fatal(err)
		}
		data, _ := tarOf(t, WalkUpper(tree))
		before := open()
		for n := range 40 {
			_, _ = Unpack(context.Background(), bytes.NewReader(data[:min(len(data), n*600)]), f.new(t), f.with(UnpackOptions{}))
			ctx, cancel := context.WithCancel(context.Background())
			if n%2 == 0 {
				cancel()
			}
			_, _ = Build(ctx, f.new(t), WalkUpper(tree), f.with(UnpackOptions{}))
			_, _ = WriteTar(context.Background(), failing{n * 512}, WalkUpper(tree))
			stopped := 0
			for range WalkUpper(tree) {
				if stopped++; stopped > n/8 {
					break
				}
			}
			cancel()
		}
		if after := open(); after > before {
			t.Errorf("%d descriptors were open, now %d", before, after)
		}
	})
}

// failing is a writer that takes so many bytes.
type failing struct{ left int }

func (f failing) Write(p []byte) (int, error) {
	if f.left < len(p) {
		return 0, unix.EPIPE
	}
	return len(p), nil
}

func TestLargeFilesAreLeftWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	endless := entry("endless", unix.S_IFREG|0o644)
	endless.Size = 1 << 50
	endless.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(io.LimitReader(xs{}, 1<<20), cancelling{cancel}, xs{})), nil
	}
	if _, err := WriteTar(ctx, io.Discard, all(endless)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// cancelling cancels when it is reached.
type cancelling struct{ cancel func() }

func (c cancelling) Read([]byte) (int, error) {
	c.cancel()
	return 0, io.EOF
}

func TestWriterErrorsComeBack(t *testing.T) {
	if _, err := WriteTar(context.Background(), failing{100}, all(reg("a", "x"))); !errors.Is(err, unix.EPIPE) {
		t.Error(err)
	}
	boom := errors.New("boom")
	_, err := WriteTar(context.Background(), io.Discard, func(yield func(File, error) bool) { yield(File{}, boom) })
	if !errors.Is(err, boom) {
		t.Error(err)
	}
	f := reg("a", "x")
	f.Open = func() (io.ReadCloser, error) { return nil, boom }
	if _, err := Build(context.Background(), t.TempDir(), all(f), UnpackOptions{}); !errors.Is(err, boom) || !strings.Contains(err.Error(), "a") {
		t.Error(err)
	}
}
