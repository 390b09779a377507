package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

func testProgram(t *testing.T, r *Request, o programOptions) (*program, error) {
	t.Helper()
	o.uidMapped = func(id uint32) bool { return id < 65536 }
	o.gidMapped = o.uidMapped
	o.rlimit = func(int) (unix.Rlimit, error) { return unix.Rlimit{Cur: 10, Max: 20}, nil }
	if o.caps == 0 {
		o.caps, _ = sys.ParseCap("ALL")
		o.caps &^= 1 << unix.CAP_SYS_RESOURCE
	}
	o.bounding = o.caps
	return newProgram(r, o)
}

func testRequest(t *testing.T, o SpecOptions) *Request {
	t.Helper()
	if o.Args == nil {
		o.Args = []string{"/bin/true"}
	}
	spec, err := DefaultSpec(o)
	if err != nil {
		t.Fatal(err)
	}
	return &Request{ID: "t", Spec: spec, Root: oci.Mount{Type: "overlay", Lower: []string{"/s/layers/a/fs", "/s/layers/b/fs"}, Upper: "/s/tmp/d/fs", Work: "/s/tmp/d/work"}}
}

// order checks that the words occur in text one after the other.
func order(t *testing.T, text string, words ...string) {
	t.Helper()
	at := 0
	for _, w := range words {
		i := strings.Index(text[at:], w)
		if i < 0 {
			t.Fatalf("no %q after byte %d of the plan:\n%s", w, at, text)
		}
		at += i + len(w)
	}
}

func TestMissingLoopbackIsSaid(t *testing.T) {
	for network, want := range map[string]int{NetworkNone: 1, NetworkHost: 0} {
		r := testRequest(t, SpecOptions{})
		r.Network = network
		var said []string
		r.Warn = func(s string) { said = append(said, s) }
		if _, err := testProgram(t, r, programOptions{caps: 1 << unix.CAP_SYS_ADMIN}); err != nil {
			t.Fatal(err)
		}
		if len(said) != want {
			t.Errorf("%v: %q", network, said)
		}
	}
}

func TestPlanClosesBeforeAllAndExecutesLast(t *testing.T) {
	p, err := testProgram(t, testRequest(t, SpecOptions{}), programOptions{leases: 3, lowerdirPlus: true, filter: make([]byte, 8)})
	if err != nil {
		t.Fatal(err)
	}
	order(t, p.String(),
		"0 close_range(12,", "clone(", "L1:\n", "close_range(7,", // the holder, then the payload
		`fsconfig(`, `"lowerdir+", "layers/a/fs"`, `"layers/b/fs"`, `"volatile"`, `"upperdir", "tmp/d/fs"`,
		"pivot_root", `umount2("."`, `openat2(-100, "/proc"`, "seccomp(", "setgroups(", "setresgid(", "setresuid(", "capset(",
		`execve("/bin/true"`)
}

func TestFilterComesLastWithNoNewPrivileges(t *testing.T) {
	p, err := testProgram(t, testRequest(t, SpecOptions{NoNewPrivileges: true}), programOptions{lowerdirPlus: true, filter: make([]byte, 8)})
	if err != nil {
		t.Fatal(err)
	}
	order(t, p.String(), "capset(", "prctl(38,", "seccomp(", "execve(")
}

func TestOldKernelsGetShortNames(t *testing.T) {
	r := testRequest(t, SpecOptions{})
	p, err := testProgram(t, r, programOptions{})
	if err != nil {
		t.Fatal(err)
	}
	order(t, p.String(), "lowerdir=100:101,upperdir=102,workdir=103,index=off,volatile")
}

func TestUserMountTakesThePlaceOfADefault(t *testing.T) {
	r := testRequest(t, SpecOptions{})
	r.Mounts = []oci.Mount{{Type: "bind", Source: "/", Target: "dev/shm/"}, {Type: "tmpfs", Target: "/x/../y"}}
	p, err := testProgram(t, r, programOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range p.mounts {
		got = append(got, m.Type+" "+m.Target)
	}
	want := []string{"proc /proc", "tmpfs /dev", "devpts /dev/pts", "sysfs /sys", "mqueue /dev/mqueue", "bind /dev/shm", "tmpfs /y"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	r.Mounts = []oci.Mount{{Type: "bind", Source: "/dev", Target: "/dev"}}
	if p, err = testProgram(t, r, programOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, m := range p.mounts {
		if strings.HasPrefix(m.Target, "/dev/") {
			t.Errorf("%s is mounted over the user's /dev", m.Target)
		}
	}
}

func TestWrongRequestsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Request){
		"the target is the root":   func(r *Request) { r.Mounts = []oci.Mount{{Type: "tmpfs", Target: "/a/.."}} },
		"no such file":             func(r *Request) { r.Mounts = []oci.Mount{{Type: "bind", Source: "/no/such/source", Target: "/a"}} },
		"zero byte":                func(r *Request) { r.Spec.Process.Args = []string{"a\x00b"} },
		"no command":               func(r *Request) { r.Spec.Process.Args = []string{""} },
		"/etc/subuid":              func(r *Request) { r.Spec.Process.User.UID = 70000 },
		"/etc/subgid":              func(r *Request) { r.Spec.Process.User.AdditionalGids = []uint32{70000} },
		"not one of the sandbox's": func(r *Request) { r.Spec.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"user namespace":           func(r *Request) { r.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"cannot be a root":         func(r *Request) { r.Root = oci.Mount{Type: "tmpfs"} },
		"is not absolute":          func(r *Request) { r.Root.Lower = []string{"a", "b"} },
		"soft limit":               func(r *Request) { r.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "NOFILE", Soft: 2, Hard: 1}} },
	} {
		r := testRequest(t, SpecOptions{})
		change(r)
		if _, err := testProgram(t, r, programOptions{lowerdirPlus: true}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error about %q, got %v", name, err)
		}
	}
}

func TestLimitThatCannotBeRaisedIsSaid(t *testing.T) {
	r := testRequest(t, SpecOptions{Rlimits: []specs.POSIXRlimit{{Type: "NOFILE", Soft: 15, Hard: 100}}})
	var said string
	r.Warn = func(s string) { said = s }
	p, err := testProgram(t, r, programOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said, "NOFILE stays at 20") {
		t.Errorf("said %q", said)
	}
	order(t, p.String(), "prlimit64(0, 7")
}

func TestMountOptionsSort(t *testing.T) {
	o, err := ParseMountOptions([]string{"rbind", "rro", "nosuid", "suid", "size=1m", "noatime", "rslave", "z"})
	if err != nil {
		t.Fatal(err)
	}
	a := o.attr()
	if !o.rbind || !o.recursive || a.Attr_set != unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOATIME ||
		a.Attr_clr != unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR__ATIME || o.propagation != unix.MS_SLAVE|unix.MS_REC {
		t.Errorf("got %+v, %+v", o, a)
	}
	if d := cmp.Diff([]string{"size=1m"}, o.FS); d != "" {
		t.Error(d)
	}
	if _, err := ParseMountOptions([]string{"a\x00b"}); err == nil {
		t.Error("a zero byte is taken")
	}
}

func TestCommonDirIsTheLongestParent(t *testing.T) {
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{[]string{"/a/b/c", "/a/b/d"}, "/a/b"},
		{[]string{"/a/b/c", "/a/bc/d"}, "/a"},
		{[]string{"/a/b", "/c/d"}, "/"},
		{[]string{"/a/b/c/", "/a/b"}, "/a"},
	} {
		got, err := commonDir(c.paths)
		if err != nil || got != c.want {
			t.Errorf("%v: %q, %v", c.paths, got, err)
		}
		for _, p := range c.paths {
			if filepath.Join(got, relative(got, p)) != filepath.Clean(p) {
				t.Errorf("%s is not %s below %s", p, relative(got, p), got)
			}
		}
	}
}

func TestCapabilitiesAddUpAsDockers(t *testing.T) {
	for _, c := range []struct {
		o    SpecOptions
		want int
		has  string
	}{
		{SpecOptions{}, 14, "CAP_MKNOD"},
		{SpecOptions{CapAdd: []string{"SYS_ADMIN"}}, 15, "CAP_SYS_ADMIN"},
		{SpecOptions{CapAdd: []string{"all"}, CapDrop: []string{"NET_RAW"}}, 40, "CAP_BPF"},
		{SpecOptions{CapDrop: []string{"ALL"}, CapAdd: []string{"CAP_KILL"}}, 1, "CAP_KILL"},
		{SpecOptions{Insecure: true}, 41, "CAP_SYS_ADMIN"},
	} {
		got, err := capabilities(c.o)
		if err != nil || len(got) != c.want || !strings.Contains(strings.Join(got, " "), c.has) {
			t.Errorf("%+v: %d %v, %v", c.o, len(got), got, err)
		}
	}
	if _, err := capabilities(SpecOptions{CapAdd: []string{"NONSENSE"}}); err == nil {
		t.Error("an unknown capability is taken")
	}
}

func TestSearchPathIsThePayloads(t *testing.T) {
	got := SearchPath([]string{"PATH=/a", "X=PATH=/b", "PATH=/c:rel::/d"})
	if d := cmp.Diff([]string{"/c", "/d"}, got); d != "" {
		t.Error(d)
	}
}

func TestStubsFollowLinksInsideAndVanish(t *testing.T) {
	root := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "real/dir"), 0o755),
		os.Symlink("/real/../real/dir/gone/away", filepath.Join(root, "link")),
		os.Symlink("../../../../real/up", filepath.Join(root, "real/dir/up")),
		os.Symlink("b", filepath.Join(root, "a")), os.Symlink("a", filepath.Join(root, "b")),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s := &stubs{root: oci.Mount{Type: "bind", Source: root}}
	before, _ := os.Stat(filepath.Join(root, "real/dir"))
	for target, want := range map[string]string{"/link/x": "real/dir/gone/away/x", "/real/dir/up": "real/up", "//new//er/": "new/er"} {
		if err := s.make(fd, target, true, false); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Lstat(filepath.Join(root, want)); err != nil || !st.IsDir() || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", target, st, err)
		}
	}
	after, _ := os.Stat(filepath.Join(root, "real/dir"))
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("the parent's time has changed")
	}
	if err := s.make(fd, "/a/x", true, false); err == nil {
		t.Error("a loop of links has an end")
	}
	if err := s.make(fd, "/file/x", true, false); err == nil {
		t.Error("a file is a directory")
	}
	if err := s.make(fd, "/used/f", false, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "used/f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.remove()
	left, _ := filepath.Glob(filepath.Join(root, "*"))
	real, _ := filepath.Glob(filepath.Join(root, "real/*"))
	if len(left) != 6 || len(real) != 1 { // a b file link real used
		t.Errorf("left %v %v", left, real)
	}
}

func TestParametersOfANetworkNamespaceAreSetWhereItIsTheSandboxsOwn(t *testing.T) {
	r := testRequest(t, SpecOptions{})
	r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"})
	r.Spec.Linux.Sysctl = map[string]string{"net.core.somaxconn": "1024"}
	if _, err := testProgram(t, r, programOptions{}); err == nil || !strings.Contains(err.Error(), "not one of the sandbox's") {
		t.Errorf("in somebody else's: %v", err)
	}
	r.OwnNetwork = true
	p, err := testProgram(t, r, programOptions{})
	if err != nil {
		t.Fatal(err)
	}
	order(t, p.String(), "setns(", "/proc/sys/net/core/somaxconn", "execve(")
}
