package sandbox_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/snapshot"
)

// chrooted is the rung chroot as den uses it: the copy driver makes an overlay's layers a
// directory, and its upper directory from what became of that.
type chrooted struct {
	*sandbox.Chroot
	driver  snapshot.Driver
	devices bool
}

func newChroot(t *testing.T) *chrooted {
	t.Helper()
	c, err := sandbox.Choose(probe.Gather(t.Context(), t.TempDir()), "chroot")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and chroot(2): ", err)
	}
	e, err := sandbox.NewChroot(sandbox.Options{Choice: c})
	if err != nil {
		t.Fatal(err)
	}
	d, _ := snapshot.Choose(snapshot.Facts{Force: "copy"})
	return &chrooted{e, d, c.Devices}
}

// layers are an overlay's as a snapshot's tree and draft.
type layers struct{ m oci.Mount }

func (l layers) Dirs() []string     { return l.m.Lower }
func (l layers) Hold() []*os.File   { return nil }
func (l layers) DiffID() oci.Digest { return "" }
func (l layers) Close() error       { return nil }
func (l layers) FS() string         { return l.m.Upper }
func (l layers) Work() string       { return l.m.Work }

func (c *chrooted) Start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	if r.Root.Type != "overlay" {
		return c.Chroot.Start(ctx, r)
	}
	l := layers{r.Root}
	if err := errors.Join(os.RemoveAll(filepath.Join(l.Work(), "root")), os.RemoveAll(filepath.Join(l.Work(), "instant"))); err != nil {
		return nil, err
	}
	a, err := c.driver.Prepare(ctx, []snapshot.Tree{l}, l)
	if err != nil {
		return nil, err
	}
	own := *r
	own.Root = a.Root
	own.Root.Hold = r.Root.Hold
	s, err := c.Chroot.Start(ctx, &own)
	if err != nil {
		return nil, err
	}
	return &chrootedSandbox{s.(live), c, a}, nil
}

type chrootedSandbox struct {
	live
	c *chrooted
	a *snapshot.Active
}

// live is what sandboxes of this rung can do.
type live interface {
	sandbox.Sandbox
	sandbox.Execer
	sandbox.Filer
	sandbox.Freezer
	sandbox.Pauser
	sandbox.Inspector
	sandbox.Limiter
}

func (s *chrootedSandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	exit, err := s.live.Wait(ctx)
	if err == nil {
		err = s.c.driver.Changes(ctx, s.a)
	}
	return exit, err
}

// NoProc tells the contract.
func (*chrooted) NoProc() bool { return true }

func TestChrootContract(t *testing.T) {
	const proc = "needs /proc in the root; TestChrootGivesTheRightsThatWereAskedFor looks from outside"
	e := newChroot(t)
	devices := sandboxtest.Skips{}
	if !e.devices {
		devices["LimitsOrAWarning"] = "needs device nodes"
	}
	sandboxtest.Contract(t, e, devices, sandboxtest.Skips{
		"NothingIsInherited":        proc,
		"UserGroupsAndUmask":        proc,
		"CapabilitiesAreDockers":    proc,
		"NoNewPrivileges":           proc,
		"SeccompFilterIsInForce":    proc,
		"Insecure":                  proc,
		"DevicesWorkAndOthersDoNot": "needs devpts and /proc in the root",
		"MaskedAndReadOnlyPaths":    "needs /proc in the root",
		"MountsNest":                "needs mounts that cannot be written",
		"ReadOnlyRoot":              "needs mounts that cannot be written",
		"Hostname":                  "needs a UTS namespace",
		"NetworkNone":               "needs a network namespace",
		"NetworkOfAnother":          "needs a network namespace",
		"Terminal":                  "needs devpts in the root",
		"OverlaySubtree":            "needs overlay mounts",
		"ExecSeesTheSandbox":        "needs a UTS namespace",
		"ExecHasItsOwnRights":       proc,
		"StatsOfOwnNetwork":         "needs a network namespace",
		"ExecWithTerminal":          "needs devpts in the root",
	})
}

func TestChrootRefusesWhatItCannotDo(t *testing.T) {
	e := newChroot(t)
	for name, change := range map[string]func(*sandbox.Request){
		"overlay":        func(r *sandbox.Request) { r.Root = oci.Mount{Type: "overlay", Lower: []string{"/"}} },
		"view":           func(r *sandbox.Request) { r.Root.Options = []string{"bind", "ro"} },
		"read-only":      func(r *sandbox.Request) { r.Spec.Root.Readonly = true },
		"network":        func(r *sandbox.Request) { r.Network = sandbox.NetworkNone },
		"sysctl":         func(r *sandbox.Request) { r.Spec.Linux.Sysctl = map[string]string{"net.core.somaxconn": "1"} },
		"mounted device": func(r *sandbox.Request) { r.Mounts = []oci.Mount{{Type: "bind", Source: "/dev/null", Target: "/d"}} },
	} {
		b := sandboxtest.New(t, e)
		r := b.Request("true")
		r.Root = oci.Mount{Type: "bind", Source: b.Lower, Target: "/"}
		change(r)
		if _, err := e.Chroot.Start(t.Context(), r); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(filepath.Dir(b.Lower)); err != nil || len(left) != 3 {
			t.Errorf("%s: beside the root there is %v, %v", name, left, err)
		}
	}
}

func TestChrootGivesTheRightsThatWereAskedFor(t *testing.T) {
	b := sandboxtest.New(t, newChroot(t))
	for _, c := range []struct {
		o    sandbox.SpecOptions
		want string
	}{
		{sandbox.SpecOptions{}, "Uid 0 Gid 0 Groups  CapEff 00000000a80425fb CapBnd 00000000a80425fb NoNewPrivs 0 Seccomp 2"},
		{sandbox.SpecOptions{UID: 1000, GID: 1001, Groups: []uint32{5, 1002}, NoNewPrivileges: true},
			"Uid 1000 Gid 1001 Groups 5 1002 CapEff 0000000000000000 CapBnd 00000000a80425fb NoNewPrivs 1 Seccomp 2"},
		{sandbox.SpecOptions{CapDrop: []string{"ALL"}, CapAdd: []string{"CHOWN"}, NoSeccomp: true},
			"Uid 0 Gid 0 Groups  CapEff 0000000000000001 CapBnd 0000000000000001 NoNewPrivs 0 Seccomp 0"},
	} {
		c.o.Args = []string{"sh", "-c", "echo ready; read x"}
		r := b.RequestFor(c.o)
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		said, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Stdin, r.Stdout = in, out
		s, err := b.Exec.Start(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := said.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s.Pid()); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.o, got, c.want)
		}
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(s.Pid()) + "/fd")
		if err != nil || len(fds) != 3 {
			t.Errorf("it has the descriptors %v, %v", fds, err)
		}
		hold.Close()
		if _, err := s.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		for _, f := range []*os.File{in, said, out} {
			f.Close()
		}
	}
}

// statusOf are some lines of a process's status.
func statusOf(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, key := range []string{"Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"} {
		_, rest, _ := strings.Cut(string(data), "\n"+key+":")
		line, _, _ := strings.Cut(rest, "\n")
		if key == "Uid" || key == "Gid" {
			line = strings.Fields(line)[0]
		}
		got = append(got, key+" "+strings.TrimSpace(line))
	}
	return strings.Join(got, " ")
}

func TestChrootCopiesMountsInAndBack(t *testing.T) {
	e := newChroot(t)
	b := sandboxtest.New(t, e)
	cache, ro, other := t.TempDir(), t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		cache + "/same": "same", cache + "/gone/x": "x", cache + "/edit": "old", cache + "/kind/f": "f",
		ro + "/f": "ro", other + "/file": "one", other + "/token": "secret",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	same := inode(t, cache+"/same")
	b.Put("image/kept", "image's own", 0o644)
	r := b.Request(`cat /cache/same /ro/f /run/secrets/token; ls /image; [ -c /dev/null ] && echo x >/dev/null && head -c 2 /dev/zero | wc -c
rm -r /cache/gone; echo new >/cache/edit; mkdir -p /cache/deep/er; echo d >/cache/deep/er/f; ln /cache/deep/er/f /cache/link; chmod 4711 /cache/deep/er/f; chown 5:6 /cache/deep
rm -r /cache/kind; ln -s edit /cache/kind; echo y >/ro/f; echo y >/ro/new; echo two >/file; echo t >/scratch/t; stat -c %a /scratch; cat /cache/inner/f; echo z >/cache/inner/g`)
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: cache, Target: "/cache", Options: []string{"rbind"}},
		{Type: "bind", Source: ro, Target: "/ro", Options: []string{"rbind", "ro"}},
		{Type: "bind", Source: ro, Target: "/cache/inner"},
		{Type: "bind", Source: other, Target: "/image", Options: []string{"ro"}},
		{Type: "bind", Source: other + "/file", Target: "/file"},
		{Type: "bind", Source: other + "/token", Target: "/run/secrets/token", Options: []string{"ro"}},
		{Type: "tmpfs", Target: "/scratch", Options: []string{"mode=700"}},
	}
	out, exit := b.Run(r)
	want := "samerosecretfile\ntoken\n2\n700\nro"
	if !e.devices { // and without them nothing is read
		want = "samerosecretfile\ntoken\n700\nro"
	}
	if out != want || exit.Code != 0 {
		t.Errorf("got %q, want %q, %+v", out, want, exit)
	}
	if changes := b.Changes(); changes != "" {
		t.Errorf("the step has changed %q", changes)
	}
	for name, want := range map[string]string{
		cache + "/same": "same", cache + "/edit": "new\n", cache + "/deep/er/f": "d\n", cache + "/link": "d\n",
		cache + "/kind": "new\n", ro + "/f": "ro", ro + "/g": "z\n", other + "/file": "two\n",
	} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{cache + "/gone", ro + "/new", cache + "/inner/f"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if inode(t, cache+"/same") != same || inode(t, cache+"/link") != inode(t, cache+"/deep/er/f") {
		t.Error("inodes are not what they were, or became")
	}
	var st unix.Stat_t
	if err := unix.Stat(cache+"/deep", &st); err != nil || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("deep belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
	if err := unix.Stat(cache+"/deep/er/f", &st); err != nil || st.Mode&0o7777 != 0o4711 {
		t.Errorf("f has mode %o, %v", st.Mode, err)
	}
	if left, err := filepath.Glob(cache + "/.den-chroot-*"); len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestChrootReachesASocketOutside(t *testing.T) {
	b := sandboxtest.New(t, newChroot(t))
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			data, _ := io.ReadAll(c)
			_, _ = c.Write([]byte("heard " + string(data)))
			c.Close()
		}
	}()
	r := b.Request("stat -c %F /run/agent; read x")
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	said, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	r.Stdin, r.Stdout = in, out
	r.Mounts = []oci.Mount{{Type: "bind", Source: path, Target: "/run/agent"}}
	s, err := b.Exec.Start(t.Context(), r)
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 7)
	if _, err := io.ReadFull(said, buf); err != nil || string(buf) != "socket\n" {
		t.Errorf("the root has a %q, %v", buf, err)
	}
	// As the payload would.
	c, err := net.Dial("unix", filepath.Join(b.Work, "root/run/agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); err != nil || string(answer) != "heard hello" {
		t.Errorf("%q, %v", answer, err)
	}
	hold.Close()
	if _, err := s.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if c := b.Changes(); c != "" {
		t.Errorf("left behind: %s", c)
	}
}

func TestChrootHasATerminal(t *testing.T) {
	b := sandboxtest.New(t, newChroot(t))
	r := b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "stty size; read line; echo got $line; test -t 0 && exit 3"}, Terminal: true, UID: 1000})
	r.Spec.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	r.Stdin = strings.NewReader("typed\n")
	out, exit := b.Run(r)
	if exit.Code != 3 || !strings.Contains(out, "11 22\r\n") || !strings.Contains(out, "got typed\r\n") {
		t.Errorf("%q, %+v", out, exit)
	}
}
