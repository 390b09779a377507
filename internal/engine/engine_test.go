package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/image"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store/storetest"
)

// A fakeExecutor runs nothing: a test plays the program.
type fakeExecutor struct {
	mu       sync.Mutex
	requests []*sandbox.Request
	fail     error
	// program is what the payload does; its result is the exit code.
	program func(*fakeSandbox) int
}

func (f *fakeExecutor) Name() string { return "fake" }

func (f *fakeExecutor) Start(_ context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r)
	if f.fail != nil {
		return nil, f.fail
	}
	sb := &fakeSandbox{request: r, signals: make(chan unix.Signal, 16), sizes: make(chan Size, 16), done: make(chan struct{})}
	go func() {
		defer close(sb.done)
		if f.program != nil {
			sb.code = f.program(sb)
		}
	}()
	return sb, nil
}

func (f *fakeExecutor) last(t *testing.T) *sandbox.Request {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.requests) == 0 {
		t.Fatal("nothing was started")
	}
	return f.requests[len(f.requests)-1]
}

type fakeSandbox struct {
	request *sandbox.Request
	signals chan unix.Signal
	sizes   chan Size
	done    chan struct{}
	code    int
}

func (s *fakeSandbox) Pid() int { return 1 }

func (s *fakeSandbox) Signal(sig unix.Signal) error {
	select {
	case s.signals <- sig:
		return nil
	case <-s.done:
		return os.ErrProcessDone
	}
}

func (s *fakeSandbox) Resize(rows, cols uint16) error {
	s.sizes <- Size{rows, cols}
	return nil
}

func (s *fakeSandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.done:
		return sandbox.Exit{Code: s.code}, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// signalled is a program that ends with the number of the first signal.
func signalled(s *fakeSandbox) int { return int(<-s.signals) }

// A rig is an engine with one image, "box".
type rig struct {
	*Engine
	exec *fakeExecutor
	t    *testing.T
}

func newRig(t *testing.T, changes ...string) *rig {
	t.Helper()
	st := storetest.Open(t)
	images := image.New(st, nil, image.Options{})
	changes = append([]string{`CMD ["/bin/default"]`}, changes...)
	_, err := images.Import(t.Context(), rootfs(t), image.ImportOptions{Name: "box", Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	exec := &fakeExecutor{}
	return &rig{New(Options{Store: st, Images: images, Exec: exec, Driver: snapshot.Drivers()[0]}), exec, t}
}

func rootfs(t *testing.T) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct{ name, text string }{
		{"etc/passwd", "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n"},
		{"etc/group", "root:x:0:\nwww:x:33:\nextra:x:44:www\n"},
		{"data/seed", "seed"}, {"data/sub/deep", "deep"},
	} {
		err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o640, Size: int64(len(f.text)), Uid: os.Geteuid(), Gid: os.Getegid()})
		if _, werr := io.WriteString(w, f.text); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func (r *rig) run(req RunRequest, s Streams) (Exit, error) {
	if req.Image == "" {
		req.Image = "box"
	}
	return r.Run(r.t.Context(), req, s)
}

func (r *rig) mustRun(req RunRequest) *sandbox.Request {
	r.t.Helper()
	if _, err := r.run(req, Streams{}); err != nil {
		r.t.Fatal(err)
	}
	return r.exec.last(r.t)
}

// names lists the containers that there are.
func (r *rig) names() []string {
	r.t.Helper()
	list, err := r.List()
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, c := range list {
		names = append(names, c.Name)
	}
	return names
}

// background runs a container; started is closed when its program runs.
func (r *rig) background(req RunRequest) (started <-chan struct{}, ended <-chan Exit) {
	s, e := make(chan struct{}), make(chan Exit, 1)
	go func() {
		exit, err := r.run(req, Streams{Started: func(string) { close(s) }})
		if err != nil {
			r.t.Error(err)
		}
		e <- exit
	}()
	return s, e
}

func TestProgramGetsWhatImageAndRequestSay(t *testing.T) {
	r := newRig(t, "ENV A=image B=image C=image", "WORKDIR /srv", "USER www", `ENTRYPOINT ["/bin/entry"]`)
	p := r.mustRun(RunRequest{
		Remove: true, Env: []string{"B=request", "C", "D=new"}, Hostname: "h", Console: Size{24, 80}, TTY: true,
		GroupAdd: []string{"extra", "77"}, Ulimits: []Ulimit{{"nofile", 1, 2}},
	}).Spec.Process
	if d := cmp.Diff([]string{"/bin/entry", "/bin/default"}, p.Args); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{strings.TrimSpace(defaultPath), "HOSTNAME=h", "TERM=xterm", "A=image", "B=request", "D=new", "HOME=/srv"}, p.Env); d != "" {
		t.Error(d)
	}
	if p.Cwd != "/srv" || p.User.UID != 33 || p.User.GID != 33 || !p.Terminal || p.ConsoleSize.Height != 24 || p.ConsoleSize.Width != 80 {
		t.Errorf("process is %+v", p)
	}
	if d := cmp.Diff([]uint32{33, 44, 77}, p.User.AdditionalGids); d != "" {
		t.Error(d)
	}
	if len(p.Rlimits) != 1 || p.Rlimits[0].Type != "RLIMIT_NOFILE" || p.Rlimits[0].Hard != 2 {
		t.Errorf("limits are %v", p.Rlimits)
	}
}

func TestCommandIsDockers(t *testing.T) {
	r := newRig(t, `ENTRYPOINT ["/e"]`)
	for name, c := range map[string]struct {
		req  RunRequest
		want []string
	}{
		"the image's":                    {RunRequest{}, []string{"/e", "/bin/default"}},
		"arguments replace the command":  {RunRequest{Args: []string{"a"}}, []string{"/e", "a"}},
		"an entrypoint drops both":       {RunRequest{Entrypoint: []string{"/x"}}, []string{"/x"}},
		"an entrypoint and arguments":    {RunRequest{Entrypoint: []string{"/x"}, Args: []string{"a"}}, []string{"/x", "a"}},
		"an empty one takes the image's": {RunRequest{Entrypoint: []string{""}, Args: []string{"a"}}, []string{"a"}},
	} {
		c.req.Remove = true
		if d := cmp.Diff(c.want, r.mustRun(c.req).Spec.Process.Args); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := r.run(RunRequest{Entrypoint: []string{""}}, Streams{}); err == nil || !strings.Contains(err.Error(), "no command specified") {
		t.Errorf("no command: %v", err)
	}
}

func TestRequestIsRefusedBeforeAnythingIsPulled(t *testing.T) {
	r := newRig(t)
	for want, req := range map[string]RunRequest{
		`network "bridge"`:             {Network: "bridge"},
		"add-host":                     {AddHosts: []string{"nonsense"}},
		`dns "x"`:                      {DNS: []string{"x"}},
		"duplicate mount point: /a":    {Mounts: []Mount{{Kind: MountTmpfs, Target: "/a"}, {Kind: MountVolume, Target: "/a/"}}},
		"can't be '/'":                 {Mounts: []Mount{{Kind: MountTmpfs, Target: "/"}}},
		"must be absolute":             {Mounts: []Mount{{Kind: MountTmpfs, Target: "a"}}},
		"is 6MB":                       {Limits: Limits{MemoryBytes: 1}},
		"when using memory-swap":       {Limits: Limits{MemorySwapBytes: 1}},
		"larger than memory":           {Limits: Limits{MemoryBytes: 64 << 20, MemorySwapBytes: 1}},
		"range of CPUs":                {Limits: Limits{CPUs: float64(runtime.NumCPU() + 1)}},
		`sysctl "kernel.panic"`:        {Sysctls: map[string]string{"kernel.panic": "1"}},
		`sysctl "net.ipv4.ip_forward"`: {Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"pull option":                  {Pull: "sometimes"},
		"absolute path":                {WorkingDir: "x"},
		"invalid signal: NONE":         {StopSignal: "NONE"},
		`security option "x"`:          {Security: []string{"x"}},
	} {
		req.Image = "not/here"
		_, err := r.run(req, Streams{})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for _, req := range []RunRequest{
		{Sysctls: map[string]string{"net.core.somaxconn": "1"}, Network: "none"},
		{Sysctls: map[string]string{"kernel.msgmax": "1", "fs.mqueue.msg_max": "2"}},
		{Security: []string{"no-new-privileges", "seccomp=unconfined", "label=disable", "apparmor:unconfined", "systempaths=unconfined"}},
		{Limits: Limits{MemoryBytes: 64 << 20, MemorySwapBytes: -1}},
	} {
		req.Remove = true
		r.mustRun(req)
	}
}

func TestMountsLieInEachOtherInOrder(t *testing.T) {
	r := newRig(t, "VOLUME /data /declared")
	dir := t.TempDir()
	req := r.mustRun(RunRequest{Remove: true, Mounts: []Mount{
		{Kind: MountBind, Source: dir, Target: "/etc/deep/er", ReadOnly: true},
		{Kind: MountTmpfs, Target: "/etc", Options: []string{"size=1m"}},
		{Kind: MountBind, Source: dir, Target: "/etc/hosts", Shallow: true},
		{Kind: MountVolume, Target: "/data"},
		{Kind: MountTmpfs, Target: "/dev/shm"},
	}})
	var got []string
	for _, m := range req.Mounts {
		got = append(got, m.Type+" "+m.Target+" "+strings.Join(m.Options, ","))
	}
	want := []string{
		"tmpfs /etc nosuid,nodev,noexec,rw,size=1m",
		"bind /data rbind,rw", "bind /declared rbind,rw",
		"bind /etc/hostname bind,rw", "bind /etc/resolv.conf bind,rw",
		"bind /etc/hosts bind,rw", "tmpfs /dev/shm nosuid,nodev,noexec,rw",
		"bind /etc/deep/er rbind,rro",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, m := range req.Spec.Mounts {
		if m.Destination == "/dev/shm" {
			t.Error("the default /dev/shm is still there")
		}
	}
	// The leases: the layer's, the container's and one for each volume.
	if len(req.Hold) < 2 {
		t.Errorf("holds %d files", len(req.Hold))
	}
}

func TestSignalsFromOtherProcessesReachTheProgram(t *testing.T) {
	r := newRig(t, "STOPSIGNAL SIGQUIT")
	r.exec.program = signalled
	for name, c := range map[string]struct {
		do   func(string) error
		want unix.Signal
	}{
		"kill":                          {func(n string) error { return r.Signal(n, unix.SIGUSR1) }, unix.SIGUSR1},
		"TERM is not the stop signal":   {func(n string) error { return r.Signal(n, unix.SIGTERM) }, unix.SIGTERM},
		"stop":                          {func(n string) error { return r.Stop(t.Context(), n, "", -1) }, unix.SIGQUIT},
		"stop with a signal of its own": {func(n string) error { return r.Stop(t.Context(), n, "HUP", -1) }, unix.SIGHUP},
		"forced removal":                {func(n string) error { return r.Remove(t.Context(), n, true) }, unix.SIGKILL},
	} {
		started, ended := r.background(RunRequest{Name: "c", Remove: name != "forced removal"})
		<-started
		if err := c.do("c"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if exit := <-ended; exit.Code != int(c.want) {
			t.Errorf("%s: the program got %d, want %d", name, exit.Code, c.want)
		}
		if left := r.names(); len(left) > 0 {
			t.Errorf("%s: containers are left: %q", name, left)
		}
	}
}

func TestSignalsAndSizesOfTheCallerReachTheProgram(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		size := <-s.sizes
		return int(<-s.signals)*1000 + int(size.Rows)
	}
	signals, sizes := make(chan unix.Signal, 1), make(chan Size, 1)
	signals <- unix.SIGTERM
	sizes <- Size{Rows: 7, Cols: 9}
	exit, err := r.run(RunRequest{Remove: true, TTY: true}, Streams{Signals: signals, Resizes: sizes})
	if err != nil || exit.Code != int(unix.SIGTERM)*1000+7 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

func TestStopKillsWhoDoesNotListen(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		for sig := range s.signals {
			if sig == unix.SIGKILL {
				return 137
			}
		}
		return 0
	}
	zero := 0
	started, ended := r.background(RunRequest{Name: "deaf", StopSeconds: &zero})
	<-started
	if err := r.Stop(t.Context(), "deaf", "", -1); err != nil {
		t.Fatal(err)
	}
	if exit := <-ended; exit.Code != 137 {
		t.Errorf("exit is %+v", exit)
	}
	if code, err := r.Wait(t.Context(), "deaf"); code != 137 || err != nil {
		t.Errorf("wait gives %d, %v", code, err)
	}
	if err := r.Stop(t.Context(), "deaf", "", 0); err != nil {
		t.Errorf("stopping what has stopped: %v", err)
	}
	if err := r.Signal("deaf", unix.SIGTERM); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signalling what has stopped: %v", err)
	}
}

func TestWaiterLearnsTheCodeOfAContainerThatRemovedItself(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	started, ended := r.background(RunRequest{Name: "brief", Remove: true})
	<-started
	code := make(chan int)
	asked := make(chan struct{})
	go func() {
		close(asked)
		got, err := r.Wait(t.Context(), "brief")
		if err != nil {
			t.Error(err)
		}
		code <- got
	}()
	<-asked
	// The waiter may be late, and then there is nothing to wait for any more; so
	// the container ends only when its exit code is open twice.
	for open := 0; open == 0; {
		open = r.openExitFiles()
	}
	if err := r.Signal("brief", 9); err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != 9 {
		t.Errorf("the waiter got %d", got)
	}
	<-ended
}

// openExitFiles counts this process's descriptors of exit codes.
func (r *rig) openExitFiles() (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && filepath.Base(to) == exitFile {
			n++
		}
	}
	return n
}

func TestProgramThatCannotStartLeavesACreatedContainer(t *testing.T) {
	r := newRig(t)
	r.exec.fail = &sandbox.ExecError{Program: "x", Code: 127, Err: sandbox.ErrNotInPath}
	cid := filepath.Join(t.TempDir(), "cid")
	for _, remove := range []bool{true, false} {
		_, err := r.run(RunRequest{Name: "c", Remove: remove, CIDFile: cid}, Streams{})
		var exec *sandbox.ExecError
		if !errors.As(err, &exec) {
			t.Fatalf("error is %v", err)
		}
		_, err = os.Stat(cid)
		if gone := errors.Is(err, os.ErrNotExist); gone != remove {
			t.Errorf("remove %v: the container ID file is gone: %v", remove, gone)
		}
		if left := len(r.names()); (left == 0) != remove {
			t.Errorf("remove %v: %d containers are left", remove, left)
		}
	}
	c, err := r.Inspect("c")
	if err != nil || c.Status != "created" || c.ExitCode != 127 || !strings.Contains(c.Error, "not found") {
		t.Errorf("container is %+v, %v", c, err)
	}
}

func TestCallerWhoGivesUpBeforeTheStartLeavesNothing(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := r.Run(ctx, RunRequest{Image: "box"}, Streams{}); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if len(r.exec.requests) > 0 {
		t.Error("the program was started")
	}
}

func TestOneOfSeveralGetsTheName(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	const runs = 6
	var mu sync.Mutex
	conflicts, started := 0, make(chan struct{}, runs)
	var wg sync.WaitGroup
	for range runs {
		wg.Go(func() {
			_, err := r.run(RunRequest{Name: "same", Remove: true}, Streams{Started: func(string) { started <- struct{}{} }})
			if errdefs.IsAlreadyExists(err) && strings.Contains(err.Error(), `the container name "same" is already in use by container`) {
				mu.Lock()
				conflicts++
				if conflicts == runs-1 { // all but the winner
					mu.Unlock()
					if err := r.Signal("same", unix.SIGTERM); err != nil {
						t.Error(err)
					}
					return
				}
				mu.Unlock()
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(started) != 1 || conflicts != runs-1 {
		t.Errorf("%d started, %d were refused", len(started), conflicts)
	}
}

// abandon leaves a container as a den that was killed does.
func (r *rig) abandon(rec record) {
	r.t.Helper()
	dir, err := r.Store.NewContainer(r.t.Context(), rec.ID)
	if err == nil {
		err = errors.Join(r.Store.NameContainer(rec.Name, rec.ID), rec.write(dir.Path()), dir.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestNameOfAKilledContainerThatWasToRemoveItselfIsFree(t *testing.T) {
	r := newRig(t)
	id := strings.Repeat("a", 64)
	r.abandon(record{ID: id, Name: "c", State: stateRunning, Remove: true})
	r.mustRun(RunRequest{Name: "c"})
	if _, err := r.Store.OpenContainer(id); !errdefs.IsNotFound(err) {
		t.Errorf("the killed one is still there: %v", err)
	}
}

func TestKilledContainersAreDeadOrGone(t *testing.T) {
	r := newRig(t)
	r.abandon(record{ID: strings.Repeat("a", 64), Name: "dead", State: stateRunning})
	r.abandon(record{ID: strings.Repeat("b", 64), Name: "gone", State: stateRunning, Remove: true})
	empty, err := r.Store.NewContainer(t.Context(), strings.Repeat("c", 64)) // it died before it wrote a record
	if err := errors.Join(err, empty.Close()); err != nil {
		t.Fatal(err)
	}
	torn, err := r.Store.NewContainer(t.Context(), strings.Repeat("d", 64)) // the machine died
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(torn.Path(), recordFile), nil, 0o600), torn.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"dead", ""}, r.names()); d != "" {
		t.Error(d)
	}
	c, err := r.Inspect("dead")
	if err != nil || c.Status != "dead" || c.ExitCode != 137 || c.Running() {
		t.Errorf("container is %+v, %v", c, err)
	}
	if code, err := r.Wait(t.Context(), "dead"); err == nil && code != 137 {
		t.Errorf("wait gives %d", code)
	}
	removed, err := r.Prune(func(*Summary) bool { return false })
	if err != nil || len(removed) != 2 {
		t.Errorf("pruned %q, %v", removed, err)
	}
	if left := r.names(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestRemovingDoesNotFreeANameThatAnotherHas(t *testing.T) {
	r := newRig(t)
	old, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	r.abandon(record{ID: old, Name: "c", State: stateExited})
	if err := r.Store.UnnameContainer("c"); err != nil { // and then it died
		t.Fatal(err)
	}
	r.abandon(record{ID: other, Name: "c", State: stateExited})
	if err := r.Remove(t.Context(), old, false); err != nil {
		t.Fatal(err)
	}
	if cid, err := r.Store.ContainerByName("c"); cid != other || err != nil {
		t.Errorf("c is %s, %v", cid, err)
	}
}

func TestImageKnowsItsContainers(t *testing.T) {
	r := newRig(t)
	r.mustRun(RunRequest{Name: "c"})
	c, err := r.Inspect("c")
	if err != nil {
		t.Fatal(err)
	}
	users, err := r.Users(c.ConfigDigest)
	if d := cmp.Diff([]string{c.ID[:12]}, users); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestGivenNamesDiffer(t *testing.T) {
	r := newRig(t)
	for range 20 {
		r.mustRun(RunRequest{})
	}
	names := r.names()
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != 20 {
		t.Errorf("%d names for 20 containers", n)
	}
}

func TestRunsLeaveNoDescriptors(t *testing.T) {
	r := newRig(t, "VOLUME /data")
	r.mustRun(RunRequest{Remove: true, Log: true})
	before := descriptors(t)
	r.mustRun(RunRequest{Remove: true, Log: true})
	r.exec.fail = errors.New("no")
	if _, err := r.run(RunRequest{Remove: true, Log: true}, Streams{}); err == nil {
		t.Error("it started")
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if v, err := r.Store.Volumes(); len(v) > 0 || err != nil {
		t.Errorf("volumes are left: %q, %v", v, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
