package engine

import (
	"context"
	"errors"
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

	"den/internal/sandbox"
)

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
					started <- <-started // before it runs it cannot be asked
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
