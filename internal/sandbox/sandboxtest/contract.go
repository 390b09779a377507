package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
)

// limit ends a test that hangs.
const limit = 30 * time.Second

// Contract runs every test of the contract against e.
func Contract(t *testing.T, e sandbox.Executor) {
	for _, c := range []struct {
		name string
		test func(*Bench)
	}{
		{"OutputAndExitCode", outputAndExitCode},
		{"ChangesLandInTheUpperDirectory", changes},
		{"StandardInput", stdin},
		{"FilesArePassedThrough", files},
		{"DeathBySignal", signals},
		{"CancelKills", cancel},
		{"NothingIsInherited", inherited},
		{"UserGroupsAndUmask", user},
		{"CapabilitiesAreDockers", capabilities},
		{"NoNewPrivileges", noNewPrivileges},
		{"SeccompFilterIsInForce", seccompFilter},
		{"DevicesWorkAndOthersDoNot", devices},
		{"MaskedAndReadOnlyPaths", protected},
		{"MissingProgram", missing},
		{"MissingWorkingDirectoryIsMade", cwd},
		{"MountPointsLeaveNoTrace", stubs},
		{"HostileLinksStayInside", links},
		{"MountsNest", nested},
		{"ReadOnlyRoot", readOnlyRoot},
		{"Hostname", hostname},
		{"HomeComesFromPasswd", home},
		{"NetworkNone", networkNone},
		{"Terminal", terminal},
		{"Init", reaper},
		{"FirstProcessIgnoresSignalsLikeDockers", pid1},
		{"Rlimits", rlimits},
		{"ManyLayers", manyLayers},
		{"OverlaySubtree", subtree},
		{"LeaseOutlivesThePayloadOnly", lease},
		{"Insecure", insecure},
		{"BindRoot", bindRoot},
		{"LimitsOrAWarning", limits},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(New(t, e)) })
	}
}

func (b *Bench) want(got, want string) {
	b.Helper()
	if got != want {
		b.Errorf("got %q, want %q", got, want)
	}
}

func outputAndExitCode(b *Bench) {
	var stderr Buffer
	r := b.Request("echo out; echo err >&2; exit 7")
	r.Stderr = &stderr
	out, exit := b.Run(r)
	b.want(out, "out\n")
	b.want(stderr.String(), "err\n")
	if exit.Code != 7 || exit.Signal != 0 {
		b.Errorf("exit is %+v", exit)
	}
}

func changes(b *Bench) {
	out, _ := b.Run(b.Request("mkdir -p /a/b && echo hi >/a/b/c && rm /etc/passwd && chown 33:33 /a/b/c && chmod 4755 /a/b/c && stat -c '%u:%g %a' /a/b/c"))
	b.want(out, "33:33 4755\n")
	b.want(b.Changes(), "a a/b a/b/c etc etc/passwd")
	var st unix.Stat_t
	b.must(unix.Lstat(filepath.Join(b.Upper, "etc/passwd"), &st))
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		b.Errorf("the whiteout has mode %o and device %d", st.Mode, st.Rdev)
	}
}

func stdin(b *Bench) {
	r := b.Request("cat; echo end")
	r.Stdin = strings.NewReader("one\ntwo\n")
	out, _ := b.Run(r)
	b.want(out, "one\ntwo\nend\n")
	out, _ = b.Run(b.Request("cat; echo end"))
	b.want(out, "end\n")
}

func files(b *Bench) {
	path := filepath.Join(b.TempDir(), "out")
	f, err := os.Create(path)
	b.must(err)
	defer f.Close()
	r := b.Request("echo direct")
	r.Stdout = f
	b.Run(r)
	got, err := os.ReadFile(path)
	b.must(err)
	b.want(string(got), "direct\n")
}

// limits is not part of the contract where no cgroup can be made.
func limits(b *Bench) {
	limit := int64(16 << 20)
	r := b.RequestFor(sandbox.SpecOptions{
		Args:      []string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; echo $?"},
		Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
	})
	var warnings []string
	r.Warn = func(s string) { warnings = append(warnings, s) }
	out, exit := b.Run(r)
	if len(warnings) > 0 {
		b.want(out, "0\n")
		b.Skip("needs a cgroup: ", warnings)
	}
	b.want(out, "137\n")
	if !exit.OOMKilled {
		b.Error("OOMKilled is not set")
	}
}

func signals(b *Bench) {
	out, exit := b.Run(b.Request("sh -c 'kill -9 $$' 2>/dev/null; echo $?"))
	b.want(out, "137\n")
	if exit.Code != 0 {
		b.Errorf("exit is %+v", exit)
	}
	r := b.Request("echo ready; exec sleep 60")
	s, lines := b.start(b.Context(), r)
	lines.next()
	b.must(s.Signal(unix.SIGKILL))
	exit, err := s.Wait(b.Context())
	b.must(err)
	if exit.Code != 137 || exit.Signal != unix.SIGKILL {
		b.Errorf("exit is %+v, want 137 by SIGKILL", exit)
	}
	if err := s.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		b.Errorf("a signal after the end: %v", err)
	}
}

func cancel(b *Bench) {
	ctx, cancel := context.WithCancel(b.Context())
	s, lines := b.start(ctx, b.Request("sleep 60 & echo ready; wait"))
	lines.next()
	cancel()
	exit, err := s.Wait(b.Context())
	b.must(err)
	if exit.Signal != unix.SIGKILL {
		b.Errorf("exit is %+v", exit)
	}
}

func inherited(b *Bench) {
	secret, err := os.Open(b.Lower)
	b.must(err)
	defer secret.Close()
	_, err = unix.FcntlInt(secret.Fd(), unix.F_SETFD, 0) // not even one that is not close-on-exec
	b.must(err)
	r := b.Request("ls /proc/self/fd | wc -l; cat /proc/self/environ | tr '\\0' '\\n' | grep -c DEN_")
	r.Hold = []*os.File{secret}
	out, _ := b.Run(r)
	if lines := strings.Fields(out); len(lines) != 2 || lines[0] != "4" || // with the one that ls reads
		lines[1] != "0" {
		b.Errorf("descriptors and variables of den: %q", out)
	}
	if !sharesPids(b.Exec) {
		return
	}
	out, _ = b.Run(b.Request(fmt.Sprintf("cd /proc/%d && cat environ mem maps 2>/dev/null | head -c 10; ls fd root/ 2>/dev/null; true", os.Getpid())))
	b.want(out, "")
}

func user(b *Bench) {
	umask := uint32(0o077)
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "id -u; id -g; id -G; umask; echo x >/dev/stdout; touch /tmp/f; stat -c %a /tmp/f"},
		UID:  1000, GID: 1001, Groups: []uint32{5, 1002}, Umask: &umask,
	}))
	b.want(out, "1000\n1001\n1001 5 1002\n0077\nx\n600\n")
	out, _ = b.Run(b.Request("id -u; umask"))
	b.want(out, "0\n0022\n")
}

func capabilities(b *Bench) {
	out, _ := b.Run(b.Request("grep -e CapEff -e CapBnd /proc/self/status | cut -f2"))
	b.want(out, "00000000a80425fb\n00000000a80425fb\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "grep -e CapEff -e CapPrm /proc/self/status | cut -f2"}, UID: 5, GID: 5}))
	b.want(out, "0000000000000000\n0000000000000000\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "grep -e CapBnd /proc/self/status | cut -f2"}, CapDrop: []string{"ALL"}, CapAdd: []string{"net_raw", "CAP_CHOWN"},
	}))
	b.want(out, "0000000000002001\n")
}

func noNewPrivileges(b *Bench) {
	const script = "grep -e NoNewPrivs -e ^Seccomp: /proc/self/status | cut -f2"
	out, _ := b.Run(b.Request(script))
	b.want(out, "0\n2\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", script}, NoNewPrivileges: true, UID: 7}))
	b.want(out, "1\n2\n")
}

func seccompFilter(b *Bench) {
	// What no capability is needed for, and the filter forbids.
	const script = "grep ^Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null && echo done"
	out, _ := b.Run(b.Request(script))
	b.want(out, "2\n")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", script}, NoSeccomp: true}))
	b.want(out, "0\ndone\n")
}

func devices(b *Bench) {
	out, _ := b.Run(b.Request(`echo gone >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
ls -d /dev/pts/ptmx /dev/shm /dev/fd /dev/stdin /dev/ptmx /dev/full >/dev/null && echo all; echo x >/dev/fd/1
mknod /tmp/null c 1 3 2>/dev/null; (echo >/tmp/null) 2>/dev/null; rm -f /tmp/null
mknod /dev/sda b 8 0 2>/dev/null; dd if=/dev/sda of=/dev/null count=1 2>/dev/null || echo no disk; rm -f /dev/sda
touch /dev/shm/x && echo shm`))
	b.want(out, "3\n3\nall\nx\nno disk\nshm\n")
}

func protected(b *Bench) {
	out, _ := b.Run(b.Request(`for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && head -c1 $f | wc -c; done | sort -u
(echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo ro; (echo h >/proc/sysrq-trigger) 2>/dev/null || echo ro
[ -z "$(ls -A /sys/firmware 2>/dev/null)" ] && echo masked; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro`))
	b.want(out, "0\nro\nro\nmasked\nro\n")
}

func missing(b *Bench) {
	b.Put("etc/plain", "text", 0o644)
	b.Put("bin/broken", "#!/no/such/interpreter\n", 0o755)
	b.Put("bin/text", "no program", 0o755)
	for _, c := range []struct {
		program string
		code    int
		text    string
	}{
		{"no-such", 127, `exec: "no-such": executable file not found in $PATH`},
		{"/no/such", 127, `exec: "/no/such": stat /no/such: no such file or directory`},
		{"/etc/plain", 126, `exec: "/etc/plain": permission denied`},
		{"/etc", 126, `exec: "/etc": is a directory`},
		{"/bin/broken", 127, `exec: "/bin/broken": exec /bin/broken: no such file or directory`},
		{"text", 126, `exec: "text": exec /bin/text: exec format error`},
	} {
		_, _, err := b.Try(b.RequestFor(sandbox.SpecOptions{Args: []string{c.program}}))
		var e *sandbox.ExecError
		if !errors.As(err, &e) {
			b.Errorf("%s: %v is no ExecError", c.program, err)
			continue
		}
		if e.Code != c.code || e.Error() != c.text {
			b.Errorf("%s: %d %s\nwant %d %s", c.program, e.Code, e, c.code, c.text)
		}
		b.Renew()
	}
}

func cwd(b *Bench) {
	b.Link("link", "/tmp/far/away")
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"pwd"}, Cwd: "/srv/new/dir"}))
	b.want(out, "/srv/new/dir\n")
	b.want(b.Changes(), "srv srv/new srv/new/dir")
	out, _ = b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"pwd"}, Cwd: "/link"}))
	b.want(out, "/tmp/far/away\n")
}

func stubs(b *Bench) {
	old := time.Unix(1000000000, 5)
	b.must(os.MkdirAll(filepath.Join(b.Lower, "opt/old"), 0o755))
	b.must(os.RemoveAll(filepath.Join(b.Lower, "proc")))
	for _, p := range []string{"opt/old", "opt", "etc", "."} {
		b.must(os.Chtimes(filepath.Join(b.Lower, p), old, old))
	}
	b.must(os.Chtimes(b.Upper, old, old))
	src := b.TempDir()
	b.must(os.WriteFile(filepath.Join(src, "f"), []byte("from outside\n"), 0o644))
	r := b.Request("cat /etc/resolv.conf /opt/old/new/deep/f; stat -c %Y /etc /opt/old; touch /run/me")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: filepath.Join(src, "f"), Target: "/etc/resolv.conf", Options: []string{"ro"}},
		{Type: "bind", Source: src, Target: "/opt/old/new/deep", Options: []string{"rbind"}},
		{Type: "tmpfs", Source: "tmpfs", Target: "/run"},
	}
	out, _ := b.Run(r)
	b.want(out, "from outside\nfrom outside\n1000000000\n1000000000\n")
	b.want(b.Changes(), "")
	st, err := os.Stat(b.Upper)
	b.must(err)
	if !st.ModTime().Equal(old) {
		b.Errorf("the upper directory's time is %v, was %v", st.ModTime(), old)
	}

	r = b.Request("touch /opt/old/mine; chmod 700 /etc")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: src, Target: "/opt/old/new"},
		{Type: "bind", Source: filepath.Join(src, "f"), Target: "/etc/hosts"},
	}
	b.Run(r)
	b.want(b.Changes(), "etc opt opt/old opt/old/mine")
}

func links(b *Bench) {
	outside := b.TempDir()
	b.must(os.WriteFile(filepath.Join(outside, "f"), []byte("x\n"), 0o644))
	up := strings.Repeat("../", 20)
	b.Link("etc/resolv.conf", up+outside+"/made")
	b.Link("etc/hosts", outside+"/also")
	b.Link("data", up+outside)
	b.Link("dev", up+outside)
	b.Link("loop", "/loop")
	r := b.Request("cat /etc/resolv.conf /data/v/f; ls /dev/null")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: filepath.Join(outside, "f"), Target: "/etc/resolv.conf"},
		{Type: "bind", Source: filepath.Join(outside, "f"), Target: "/etc/hosts"},
		{Type: "bind", Source: outside, Target: "/data/v"},
	}
	out, _ := b.Run(r)
	b.want(out, "x\nx\n/dev/null\n")
	entries, err := os.ReadDir(outside)
	b.must(err)
	if len(entries) != 1 {
		b.Errorf("the outer directory has %v now", entries)
	}
	b.want(b.Changes(), "")

	r = b.Request("true")
	r.Mounts = []oci.Mount{{Type: "bind", Source: outside, Target: "/loop/x"}}
	if _, _, err := b.Try(r); !errors.Is(err, unix.ELOOP) {
		b.Errorf("a loop of links: %v", err)
	}
	b.Renew()
	b.must(os.Remove(filepath.Join(b.Lower, "dev")))
	b.Link("proc", "/tmp")
	out, _ = b.Run(b.Request("readlink /proc; [ -e /tmp/self/status ] && echo inside"))
	b.want(out, "/tmp\ninside\n")
}

func nested(b *Bench) {
	vol, inner := b.TempDir(), b.TempDir()
	b.must(os.WriteFile(filepath.Join(inner, "f"), []byte("inner\n"), 0o644))
	r := b.Request("cat /v/deep/er/f; touch /v/deep/er/no 2>/dev/null || echo ro; touch /v/yes /tmpfs/ok; ls /tmpfs")
	r.Mounts = []oci.Mount{
		{Type: "bind", Source: vol, Target: "/v", Options: []string{"rbind", "rw"}},
		{Type: "bind", Source: inner, Target: "/v/deep/er", Options: []string{"ro"}},
		{Type: "tmpfs", Target: "/tmpfs", Options: []string{"size=1m", "mode=1777"}},
		{Type: "bind", Source: filepath.Join(inner, "f"), Target: "/tmpfs/sub/f"},
	}
	out, _ := b.Run(r)
	b.want(out, "inner\nro\nok\nsub\n")
	if _, err := os.Stat(filepath.Join(vol, "yes")); err != nil {
		b.Error(err)
	}
	b.want(b.Changes(), "")
}

func readOnlyRoot(b *Bench) {
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "touch /x 2>/dev/null || echo ro; touch /dev/shm/y && echo rw"}, ReadOnlyRoot: true,
	}))
	b.want(out, "ro\nrw\n")
}

func hostname(b *Bench) {
	before, err := os.Hostname()
	b.must(err)
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"hostname"}, Hostname: "den-test"}))
	b.want(out, "den-test\n")
	after, err := os.Hostname()
	b.must(err)
	b.want(after, before)
}

func home(b *Bench) {
	b.Put("etc/passwd", "root:x:0:0::/root:/bin/sh\nbroken\nu:x:7:7::/home/u:/bin/sh\n", 0o644)
	for _, c := range []struct {
		uid  uint32
		env  []string
		want string
	}{
		{0, nil, "/root\n"},
		{7, []string{"HOME=", "PATH=/bin"}, "/home/u\n"},
		{8, nil, "/\n"},
		{0, []string{"HOME=/x", "PATH=/bin"}, "/x\n"},
	} {
		out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "echo $HOME"}, UID: c.uid, Env: c.env}))
		b.want(out, c.want)
	}
	b.must(os.Remove(filepath.Join(b.Lower, "etc/passwd")))
	b.must(unix.Mkfifo(filepath.Join(b.Lower, "etc/passwd"), 0o644))
	out, _ := b.Run(b.Request("echo $HOME"))
	b.want(out, "/\n")
}

func networkNone(b *Bench) {
	r := b.Request("ls /sys/class/net; ip addr show lo | grep -c 127.0.0.1; (nc -l -p 81 >/dev/null & ) ; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
	r.Network = sandbox.NetworkNone
	out, _ := b.Run(r)
	if !regexp.MustCompile(`(?s)lo.*\n1\n0\n$`).MatchString(out) {
		b.Errorf("got %q", out)
	}
}

func terminal(b *Bench) {
	r := b.RequestFor(sandbox.SpecOptions{
		Args:     []string{"sh", "-c", "tty; stty size; echo on >/dev/console; read line; echo got $line; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 1; done"},
		Terminal: true, UID: 1000,
	})
	r.Spec.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	r.Stdin = strings.NewReader("typed\n")
	s, lines := b.start(b.Context(), r)
	var got []string
	for len(got) == 0 || got[len(got)-1] != "ready" {
		if l := strings.TrimSpace(lines.next()); l != "typed" { // the echo comes when it comes
			got = append(got, l)
		}
	}
	b.want(strings.Join(got, ","), "/dev/pts/0,11 22,on,got typed,ready")
	b.must(s.Resize(33, 44))
	exit, err := s.Wait(b.Context())
	b.must(err)
	if exit.Code != 3 {
		b.Errorf("exit is %+v", exit)
	}
	b.want(strings.TrimSpace(lines.next()), "33 44")
}

func reaper(b *Bench) {
	r := b.Request("cat /proc/1/comm; (sh -c 'sleep 0.01 & exec true'; true); sh -c '(sleep 0.02 &)'; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
	r.Init = true
	s, lines := b.start(b.Context(), r)
	if first := lines.next(); sharesPids(b.Exec) {
		b.Log("no pid namespace: process 1 is ", first)
	} else {
		b.want(first, "den-init\n")
	}
	b.want(lines.next(), "ready\n")
	b.must(s.Signal(unix.SIGTERM))
	exit, err := s.Wait(b.Context())
	b.must(err)
	b.Renew()
	if exit.Code != 9 {
		b.Errorf("exit is %+v, want 9", exit)
	}
	r = b.Request("kill -9 $$")
	r.Init = true
	if _, exit := b.Run(r); exit.Code != 137 || exit.Signal != unix.SIGKILL {
		b.Errorf("exit is %+v, want 137 by signal", exit)
	}
	r = b.RequestFor(sandbox.SpecOptions{Args: []string{"no-such"}})
	r.Init = true
	if _, _, err := b.Try(r); err == nil || !strings.Contains(err.Error(), "not found") {
		b.Errorf("a missing program below init: %v", err)
	}
}

func sharesPids(e sandbox.Executor) bool {
	n, ok := e.(interface{ SharesPids() bool })
	return ok && n.SharesPids()
}

func pid1(b *Bench) {
	if sharesPids(b.Exec) {
		b.Skip("needs a pid namespace: this outer container masks proc")
	}
	s, lines := b.start(b.Context(), b.Request("echo $$; kill -TERM $$; echo alive; read x || sleep 60"))
	b.want(lines.next(), "1\n")
	b.want(lines.next(), "alive\n")
	b.must(s.Signal(unix.SIGTERM))
	b.must(s.Signal(unix.SIGKILL))
	exit, err := s.Wait(b.Context())
	b.must(err)
	if exit.Signal != unix.SIGKILL {
		b.Errorf("exit is %+v: process 1 must ignore SIGTERM", exit)
	}
}

func rlimits(b *Bench) {
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args:    []string{"sh", "-c", "ulimit -n; ulimit -c"},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "CORE", Soft: 0, Hard: 1 << 62}},
	}))
	b.want(out, "100\n0\n")
}

func manyLayers(b *Bench) {
	const n = 300
	dir := b.TempDir()
	r := b.Request("cat /l0 /l299 | tr '\\n' ' '; ls / | grep -c ^l")
	r.Root.Lower = nil
	for i := range n {
		l := filepath.Join(dir, strings.Repeat("0123456789abcdef", 6), "layers", itoa(i))
		b.must(os.MkdirAll(l, 0o755))
		b.must(os.WriteFile(filepath.Join(l, "l"+itoa(i)), []byte(itoa(i)+"\n"), 0o644))
		r.Root.Lower = append(r.Root.Lower, l)
	}
	r.Root.Lower = append(r.Root.Lower, b.Lower)
	out, _ := b.Run(r)
	b.want(out, "0 299 300\n")
}

func itoa(i int) string {
	return strings.TrimLeft(string([]byte{byte('0' + i/100), byte('0' + i/10%10)}), "0") + string(rune('0'+i%10))
}

func subtree(b *Bench) {
	top, bottom := b.TempDir(), b.TempDir()
	b.must(os.MkdirAll(filepath.Join(top, "usr/share"), 0o755))
	b.must(os.MkdirAll(filepath.Join(bottom, "usr/share"), 0o755))
	b.must(os.WriteFile(filepath.Join(top, "usr/share/a"), []byte("a\n"), 0o644))
	b.must(os.WriteFile(filepath.Join(bottom, "usr/share/b"), []byte("b\n"), 0o644))
	b.must(os.Symlink("../../../../etc", filepath.Join(top, "usr/evil")))
	r := b.Request("cat /m/a /m/b /one/b /file; ls /m /one | wc -l; touch /m/x 2>/dev/null || echo ro")
	r.Mounts = []oci.Mount{
		{Type: "overlay", Lower: []string{top, bottom}, Source: "/usr/share", Target: "/m", Options: []string{"ro"}},
		{Type: "overlay", Lower: []string{bottom}, Source: "usr/share", Target: "/one", Options: []string{"ro"}},
	}
	b.must(os.WriteFile(filepath.Join(b.Lower, "file"), []byte("f\n"), 0o644))
	out, _ := b.Run(r)
	b.want(out, "a\nb\nb\nf\n6\nro\n")
	r = b.Request("true")
	r.Mounts = []oci.Mount{{Type: "overlay", Lower: []string{top, bottom}, Source: "/usr/evil/passwd", Target: "/m"}}
	if _, _, err := b.Try(r); !errors.Is(err, unix.ENOENT) {
		b.Errorf("a link out of the subtree: %v", err)
	}
}

func lease(b *Bench) {
	dir := b.TempDir()
	held, err := os.Open(dir)
	b.must(err)
	b.must(unix.Flock(int(held.Fd()), unix.LOCK_SH))
	r := b.Request("echo ready; read x")
	r.Root.Hold = []*os.File{held}
	in, w, err := os.Pipe()
	b.must(err)
	r.Stdin = in
	s, lines := b.start(b.Context(), r)
	in.Close()
	lines.next()
	held.Close()
	if b.lockable(dir) {
		b.Error("the lease is gone while the payload lives")
	}
	w.Close()
	_, err = s.Wait(b.Context())
	b.must(err)
	if !b.lockable(dir) {
		b.Error("the lease is held after Wait")
	}
}

// lockable reports whether nobody has a lease on dir.
func (b *Bench) lockable(dir string) bool {
	f, err := os.Open(dir)
	b.must(err)
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

func insecure(b *Bench) {
	out, _ := b.Run(b.RequestFor(sandbox.SpecOptions{
		Args:     []string{"sh", "-c", "grep ^Seccomp: /proc/self/status | cut -f2; mkdir /m && mount -t tmpfs none /m && echo mounted"},
		Insecure: true,
	}))
	b.want(out, "0\nmounted\n")
}

func bindRoot(b *Bench) {
	r := b.Request("echo there >/there; cat /there")
	r.Root = oci.Mount{Type: "bind", Source: b.Lower, Target: "/"}
	src := b.TempDir()
	r.Mounts = []oci.Mount{{Type: "bind", Source: src, Target: "/stub/deep"}}
	out, _ := b.Run(r)
	b.want(out, "there\n")
	if _, err := os.Stat(filepath.Join(b.Lower, "there")); err != nil {
		b.Error(err)
	}
	if _, err := os.Stat(filepath.Join(b.Lower, "stub")); err == nil {
		b.Error("the mount point is still there")
	}
}
