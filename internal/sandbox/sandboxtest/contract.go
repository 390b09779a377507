package sandboxtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// limit ends a test that hangs.
const limit = 2 * time.Minute

// Skips says, by names of tests, what an executor cannot do and why.
type Skips map[string]string

// ContractOf runs the tests of the contract with these names against e.
func ContractOf(t *testing.T, e sandbox.Executor, names ...string) {
	for _, c := range contract() {
		if slices.Contains(names, c.name) {
			t.Run(c.name, func(t *testing.T) { c.test(New(t, e)) })
		}
	}
}

// A promise is one test of the contract.
type promise struct {
	name string
	test func(*Bench)
}

func contract() []promise {
	return []promise{
		{"OutputAndExitCode", outputAndExitCode},
		{"ChangesLandInTheUpperDirectory", changes},
		{"StandardInput", stdin},
		{"FilesArePassedThrough", files},
		{"DeathBySignal", signals},
		{"CancelKills", cancel},
		{"FrozenProcessesStandStillUntilThawed", freeze},
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
		{"NetworkOfAnother", joins},
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
		{"ExecSeesTheSandbox", execSees},
		{"ExecHasItsOwnRights", execRights},
		{"ExecErrorsAreDockers", execErrors},
		{"ExecEndsBySignalCancelAndWithTheSandbox", execEnds},
		{"ExecWithTerminal", execTerminal},
		{"ExecIsFrozenWithTheSandbox", execFrozen},
		{"ExecBesideInit", execBesideInit},
		{"ExecIsInterruptedAtTheTerminal", execInterrupted},
		{"ExecsManyAtOnceLeaveNothingOpen", execMany},
		{"FilesAreReadWhileItRuns", filesRead},
		{"FilesAreWrittenWhileItRuns", filesWrite},
		{"HostileFilesLeadNowhere", filesHostile},
		{"PausedProcessesStandStillAndCanBeKilled", paused},
		{"PausedInACgroup", pausedWithLimits},
		{"StatsSayWhatIsUsed", stats},
		{"LimitsAreInForceAndCounted", limitsCounted},
		{"LimitsAreChangedWhileItRuns", limitsChanged},
		{"StatsOfOwnNetwork", statsOfNetwork},
		{"ProcessesAreListed", processes},
		{"ManyAtOnceLeaveNothingOpen", many},
	}
}

// Contract runs every test of the contract against e.
func Contract(t *testing.T, e sandbox.Executor, skips ...Skips) {
	for _, c := range contract() {
		t.Run(c.name, func(t *testing.T) {
			for _, s := range skips {
				if why := s[c.name]; why != "" {
					t.Skip(why)
				}
			}
			c.test(New(t, e))
		})
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

func many(b *Bench) {
	for range 2 { // what is opened once, or kept for the next
		b.Run(b.Request("true"))
	}
	before := b.descriptors()
	var wg sync.WaitGroup
	for i := range 8 {
		r := b.Request("echo $0; exit 3")
		r.ID += itoa(i)
		r.Spec.Process.Args = append(r.Spec.Process.Args, itoa(i))
		r.Root.Upper, r.Root.Work = b.TempDir(), b.TempDir()
		b.Cleanup(func() { _ = os.Remove(filepath.Join(r.Root.Work, "work")) })
		var out Buffer
		r.Stdout, r.Stderr = &out, &out
		wg.Go(func() {
			for range 4 {
				s, err := b.Exec.Start(b.Context(), r)
				if err != nil {
					b.Errorf("%d: %v", i, err)
					return
				}
				if exit, err := s.Wait(b.Context()); err != nil || exit.Code != 3 {
					b.Errorf("%d: %+v, %v", i, exit, err)
				}
				_ = os.RemoveAll(filepath.Join(r.Root.Work, "work"))
			}
			if got, want := out.String(), strings.Repeat(itoa(i)+"\n", 4); got != want {
				b.Errorf("%d: got %q", i, got)
			}
		})
	}
	wg.Wait()
	_, _, err := b.Try(b.RequestFor(sandbox.SpecOptions{Args: []string{"no-such"}}))
	if err == nil {
		b.Error("a missing program was started")
	}
	if after := b.descriptors(); after != before {
		b.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// descriptors is how many files this process has open, without what the executor has ready for
// sandboxes to come: that depends on how fast they came.
func (b *Bench) descriptors() int {
	e, err := os.ReadDir("/proc/self/fd")
	b.must(err)
	if k, ok := b.Exec.(interface{ FilesKept() int }); ok {
		return len(e) - k.FilesKept()
	}
	return len(e)
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
	_, err = f.WriteString("before\n") // as a shell does that goes on afterwards
	b.must(err)
	r := b.Request("echo out; echo err >&2; echo more")
	r.Stdout, r.Stderr = f, f
	b.Run(r)
	_, err = f.WriteString("after\n")
	b.must(err)
	got, err := os.ReadFile(path)
	b.must(err)
	// The order of the two streams is nobody's promise.
	b.want(strings.Replace(string(got), "err\n", "", 1), "before\nout\nmore\nafter\n")
	if !strings.Contains(string(got), "err\n") {
		b.Errorf("stderr is missing: %q", got)
	}
}

// limits is not part of the contract where no cgroup can be made.
func limits(b *Bench) {
	limit := int64(16 << 20)
	if ownKernel(b.Exec) {
		watchedLimits(b, limit)
		return
	}
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

// watchedLimits is for an executor that looks after the limits itself, and
// cannot do it at each page.
func watchedLimits(b *Bench, limit int64) {
	pids := int64(20)
	r := b.RequestFor(sandbox.SpecOptions{
		Args:      []string{"sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done 2>&1 | grep -q -i resource && echo bounded; dd if=/dev/zero of=/dev/shm/f bs=1M count=48 2>/dev/null; sleep 30; echo alive"},
		Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}},
	})
	out, exit := b.Run(r)
	b.want(out, "bounded\n")
	if exit.Signal != unix.SIGKILL || !exit.OOMKilled {
		b.Errorf("exit is %+v, want a kill for the use of memory", exit)
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

func freeze(b *Bench) {
	s, lines := b.start(b.Context(), b.Request("(while :; do :; done) & sh -c 'echo ready; while :; do :; done' & wait"))
	lines.next()
	f, ok := s.(sandbox.Freezer)
	if !ok {
		b.must(s.Signal(unix.SIGKILL))
		b.Skip("needs an executor that can hold its processes")
	}
	f.Freeze()
	tree := descendants(s.Pid())
	if len(tree) < 2 {
		b.Errorf("the processes are %v", tree)
	}
	for _, pid := range tree {
		b.awaitState(pid, "T")
	}
	f.Thaw()
	for _, pid := range tree {
		b.awaitState(pid, "RSD")
	}
	b.must(s.Signal(unix.SIGKILL))
	_, err := s.Wait(b.Context())
	b.must(err)
	f.Freeze() // nobody is there
	f.Thaw()
}

// descendants are pid and all below it.
func descendants(pid int) []int {
	all := []int{pid}
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
	for f := range strings.FieldsSeq(string(data)) {
		n, _ := strconv.Atoi(f)
		all = append(all, descendants(n)...)
	}
	return all
}

// awaitState waits until a process is in one of the states, as /proc/PID/stat calls them.
func (b *Bench) awaitState(pid int, states string) {
	b.Helper()
	for deadline := time.Now().Add(limit); ; {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		b.must(err)
		_, rest, _ := strings.Cut(string(data), ") ")
		if strings.ContainsAny(rest[:1], states) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("process %d is in state %.1s, want one of %s", pid, rest, states)
		}
		runtime.Gosched()
	}
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
	if want := `(?s)lo.*\n1\n0\n$`; ownKernel(b.Exec) {
		// What ls has to say comes when it comes.
		if want = `(?m)^1$`; !regexp.MustCompile(want).MatchString(out) { // its sysfs shows no devices
			b.Errorf("got %q", out)
		}
	} else if sharesPids(b.Exec) {
		b.Log("below a masked proc, the outer one is shown, where nothing can be set: ", out)
	} else if !regexp.MustCompile(want).MatchString(out) {
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
	r := b.Request("exec 2>&1; cat /proc/1/comm; (sh -c 'sleep 0.01 & exec true'; true); sh -c '(sleep 0.02 &)'; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
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

// ownKernel reports whether the payload's kernel is not the one that den runs on.
func ownKernel(e sandbox.Executor) bool {
	k, ok := e.(interface{ OwnKernel() bool })
	return ok && k.OwnKernel()
}

// noProc reports that payloads have no /proc.
func noProc(e sandbox.Executor) bool {
	n, ok := e.(interface{ NoProc() bool })
	return ok && n.NoProc()
}

func pid1(b *Bench) {
	if sharesPids(b.Exec) {
		b.Skip("needs a pid namespace: this outer container masks proc")
	}
	if ownKernel(b.Exec) {
		b.Skip("needs Linux: the sentry's process 1 takes every signal")
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
