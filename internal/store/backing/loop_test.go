package backing

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/store/ext4"
	"den/internal/sys"
)

// Children of these tests are users of a backing: the test's binary, started again by
// itself and then once more by Enter.
const userEnv = "DEN_TEST_BACKING_USER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(userEnv); dir != "" {
		if err := use(dir, os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// use mounts the backing of dir, makes the files that args name, and lives until its
// standard input ends.
func use(dir string, args []string) error {
	b, err := Find(dir)
	if b == nil {
		return fmt.Errorf("no backing: %w", err)
	}
	if err := b.Enter(os.Args, os.Environ()); err != nil {
		return err
	}
	for _, name := range args {
		if err := os.WriteFile(filepath.Join(b.Store(), name), []byte(name), 0o644); err != nil {
			return err
		}
	}
	u, err := b.Usage()
	if err != nil {
		return err
	}
	there, err := os.ReadDir(b.Store())
	if err != nil {
		return err
	}
	var list []string
	for _, e := range there {
		list = append(list, e.Name())
	}
	fmt.Println("ready", u.Device, strings.Join(list, " "))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A user is a process that has a backing mounted.
type user struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	device string
	sees   []string // in the store's directory
}

// start starts a user, by way of wrap if it is given.
func start(t *testing.T, dir string, wrap []string, env string, files ...string) (*user, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append(slices.Clone(wrap), exe), files...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), userEnv+"="+dir, env)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "ready" {
		in.Close()
		return nil, errors.Join(errors.New(cmp.Or(line, "no word")), cmd.Wait())
	}
	return &user{cmd, in, words[1], words[2:]}, nil
}

// end ends a user; how it was ended is no error.
func (u *user) end(kill bool) {
	if kill {
		_ = u.cmd.Process.Kill()
	}
	u.stdin.Close()
	_ = u.cmd.Wait()
}

// newBacking makes one, and skips where that is not allowed.
func newBacking(t *testing.T, sizeBytes int64) *Backing {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "a [b]acking*") // whose name is no pattern
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := Create(dir, sizeBytes)
	if errdefs.IsFailedPrecondition(err) {
		t.Skipf("needs loop devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.isDetached(t) })
	return b
}

// isDetached waits until no loop device has the image, which the kernel does after
// the last user's end.
func (b *Backing) isDetached(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		devices := b.devices(t)
		if len(devices) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still attached to %v", devices)
		}
	}
}

// devices are the loop devices that the image is attached to, by sysfs.
func (b *Backing) devices(t *testing.T) (list []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(name)) == b.image() {
			list = append(list, strings.Split(f, "/")[3])
		}
	}
	return list
}

func TestManyUsersAtOnceShareOneDeviceAndLeaveNone(t *testing.T) {
	b := newBacking(t, 1<<30)
	const n = 20
	users := make([]*user, n)
	for round := range 2 {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				var err error
				if users[i], err = start(t, b.Dir(), nil, "", fmt.Sprintf("%d-%d", round, i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		for _, u := range users {
			if u.device != users[0].device || !strings.HasPrefix(u.device, "/dev/loop") {
				t.Errorf("one is on %s, another on %s", users[0].device, u.device)
			}
		}
		if d := b.devices(t); len(d) != 1 {
			t.Errorf("attached to %v", d)
		}
		if b.Mounted() {
			t.Error("a user's mount is seen by others")
		}
		for i, u := range users {
			wg.Go(func() { u.end(i%3 == 0) })
		}
		wg.Wait()
		b.isDetached(t)
	}
	u, err := start(t, b.Dir(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.end(false)
	if len(u.sees) != 2*n+1 { // and lost+found
		t.Errorf("of %d files there are %v", 2*n, u.sees)
	}
}

func TestUsersOfSeveralMountNamespacesShareOneDevice(t *testing.T) {
	b := newBacking(t, 1<<30)
	elsewhere := t.TempDir()
	// As two containers have a volume, each in its own place.
	second := []string{"unshare", "-m", "sh", "-ec", `mount --bind "$0" "$1"; shift; exec "$@"`, b.Dir(), elsewhere}
	if err := exec.Command("unshare", "-m", "true").Run(); err != nil {
		t.Skipf("needs unshare -m: %v", err)
	}
	one, err := start(t, b.Dir(), []string{"unshare", "-m"}, "", "one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := start(t, elsewhere, second, "", "two")
	if err != nil {
		one.end(false)
		t.Fatal(err)
	}
	if one.device != two.device || !slices.Contains(two.sees, "one") {
		t.Errorf("%s and %s, where there is %v", one.device, two.device, two.sees)
	}
	one.end(true)
	three, err := start(t, b.Dir(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if three.device != two.device || !slices.Contains(three.sees, "two") {
		t.Errorf("%s and %s, where there is %v", two.device, three.device, three.sees)
	}
	two.end(false)
	three.end(false)
}

func TestKilledAnywhereItIsFoundAgain(t *testing.T) {
	b := newBacking(t, 1<<30)
	for _, point := range []string{"backing.attach.configure", "backing.attach.configured"} {
		if u, err := start(t, b.Dir(), nil, "DEN_FAILPOINTS="+point+"=kill"); err == nil {
			u.end(true)
			t.Errorf("%s: it lives", point)
		}
		b.isDetached(t)
		u, err := start(t, b.Dir(), nil, "", point)
		if err != nil {
			t.Fatal(err)
		}
		u.end(true)
	}
	u, err := start(t, b.Dir(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.end(false)
	if len(u.sees) != 3 {
		t.Errorf("there is %v", u.sees)
	}
	if left := names(t, b.Dir()); slices.ContainsFunc(left, func(n string) bool { return strings.HasPrefix(n, tmpPrefix) }) {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatAKilledCreatorLeftIsReplaced(t *testing.T) {
	dir := newBacking(t, 1<<30).Dir()
	if err := os.Remove(filepath.Join(dir, markerFile)); err != nil { // its last act
		t.Fatal(err)
	}
	write(t, dir, tmpPrefix+"X", "half an image")
	b, err := Create(dir, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, dir), []string{imageFile, markerFile, mountDir}; !slices.Equal(got, want) {
		t.Errorf("there is %v, want %v", got, want)
	}
	if u, err := b.Usage(); err != nil || u.SizeBytes != 256<<20 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestImageGrowsAndNeverShrinks(t *testing.T) {
	b := newBacking(t, 128<<20)
	u, err := start(t, b.Dir(), nil, "", "before")
	if err != nil {
		t.Fatal(err)
	}
	err = b.grow(1<<30, 0)
	if st, _ := sys.SelfStatus(); !st.Effective.Has(unix.CAP_SYS_RESOURCE) {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			t.Errorf("in use: %v", err)
		}
	} else if err != nil {
		t.Errorf("in use: %v", err)
	}
	u.end(false)
	b.isDetached(t)
	for range 2 { // the second finds nothing to do
		if _, err := Create(b.Dir(), 2<<30); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Create(b.Dir(), 1<<30); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("shrinking: %v", err)
	}
	if got := b.mountedBytes(t); got < 1900<<20 || got > 2<<30 {
		t.Errorf("the file system has %d bytes", got)
	}
	u, err = start(t, b.Dir(), nil, "", "after")
	if err != nil {
		t.Fatal(err)
	}
	defer u.end(false)
	if !slices.Contains(u.sees, "before") {
		t.Errorf("there is %v", u.sees)
	}
}

// A machine that stops leaves an image with a journal to bring home.
func TestImageOfAMachineThatStoppedGrows(t *testing.T) {
	b := newBacking(t, 128<<20)
	u, err := start(t, b.Dir(), nil, "", "file")
	if err != nil {
		t.Fatal(err)
	}
	defer u.end(false)
	after := &Backing{t.TempDir()}
	if out, err := exec.Command("cp", "-a", "--sparse=always", b.Dir()+"/.", after.Dir()).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	f, err := os.OpenFile(after.image(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ext4.Grow(f, 256<<20); !errors.Is(err, ext4.ErrUnclean) {
		t.Fatalf("the copy is clean: %v", err)
	}
	if _, err := Create(after.Dir(), 256<<20); err != nil {
		t.Fatal(err)
	}
	after.isDetached(t)
	if n, err := ext4.Bytes(f); err != nil || n != 256<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestTrimGivesRoomBack(t *testing.T) {
	b := newBacking(t, 1<<30)
	const bytes = 64 << 20
	b.inside(t, func(store string) {
		write(t, store, "big", strings.Repeat("x", bytes))
		dir, err := os.Open(store)
		if err == nil {
			err = errors.Join(sys.Syncfs(dir), dir.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		if u, err := b.Usage(); err != nil || u.HostBytes < bytes {
			t.Errorf("full: %+v, %v", u, err)
		}
		if err := os.Remove(filepath.Join(store, "big")); err != nil {
			t.Fatal(err)
		}
		if err := b.trim(store); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			u, err := b.Usage()
			if err != nil {
				t.Fatal(err)
			}
			if u.HostBytes < bytes/2 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v", u)
			}
		}
	})
}

// inside mounts the image where this process sees it, through a descriptor.
func (b *Backing) inside(t *testing.T, fn func(store string)) {
	t.Helper()
	mount, err := b.mount()
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	fn(fmt.Sprintf("/proc/self/fd/%d", mount.Fd()))
}

func (b *Backing) mountedBytes(t *testing.T) (n int64) {
	t.Helper()
	b.inside(t, func(store string) {
		var st unix.Statfs_t
		if err := unix.Statfs(store, &st); err != nil {
			t.Fatal(err)
		}
		n = int64(st.Blocks) * st.Bsize
	})
	return n
}

func TestWhoMayNotMountIsTold(t *testing.T) {
	b := newBacking(t, 128<<20)
	nobody := []string{"setpriv", "--bounding-set", "-sys_admin"}
	if err := exec.Command(nobody[0], append(nobody[1:], "true")...).Run(); err != nil {
		t.Skipf("needs setpriv: %v", err)
	}
	u, err := start(t, b.Dir(), nobody, "")
	if err == nil {
		u.end(true)
		t.Fatal("it is mounted")
	}
	for _, word := range []string{"loop devices cannot be used here", "--privileged"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: does not say %q", err, word)
		}
	}
}
