package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/probe"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/snapshot"
)

// rootEnv can run steps.
func rootEnv(t testing.TB, root string) *Env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: steps run in namespaces of their own")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs /bin/busybox, for the base image")
	}
	env := storeEnv(t, root)
	facts := probe.Gather(context.Background(), env.Store.Root())
	choice, err := sandbox.Choose(facts, "")
	if err != nil || choice.Enter {
		t.Skipf("needs a rung in this process: %s (%v)", choice.Why, err)
	}
	if env.Exec, err = sandbox.NewNamespaces(sandbox.Options{Choice: choice}); err != nil {
		t.Fatal(err)
	}
	env.Driver, _ = snapshot.Choose(snapshot.Facts{
		OverlayOK: facts.Overlay == 0, OnOverlay: facts.FSType == "overlay", Reflink: facts.Reflink == 0,
		Scratch: func(ctx context.Context) (snapshot.Draft, error) { return env.Store.NewDraft(ctx) },
	})
	if env.Driver == nil {
		t.Skip("needs a snapshot driver")
	}
	return env
}

// busybox is a base image made on the spot.
func busybox(t testing.TB, env *Env) *Ref {
	t.Helper()
	program, err := os.Open("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	st, err := program.Stat()
	if err != nil {
		t.Fatal(err)
	}
	text := func(p, content string) layer.File {
		return layer.File{
			Entry: oci.Entry{Path: p, Mode: 0o100644, Size: int64(len(content)), ModTime: testTime},
			Open:  func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
		}
	}
	dir := func(p string, perm uint32) layer.File {
		return layer.File{Entry: oci.Entry{Path: p, Mode: 0o040000 | perm, ModTime: testTime}}
	}
	files := []layer.File{
		dir(".", 0o755), dir("bin", 0o755),
		{
			Entry: oci.Entry{Path: "bin/busybox", Mode: 0o100755, Size: st.Size(), ModTime: testTime},
			Open:  func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(program, 0, st.Size())), nil },
		},
		{Entry: oci.Entry{Path: "bin/sh", Mode: 0o120777, Link: "busybox", ModTime: testTime}},
		dir("dev", 0o755), dir("etc", 0o755),
		text("etc/group", "root:x:0:\nwheel:x:10:bob\nbob:x:1000:\n"), text("etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/:/bin/sh\n"),
		dir("old", 0o755), text("old/file", "old\n"),
		dir("proc", 0o555), dir("sys", 0o555), dir("tmp", 0o1777),
	}
	r, err := env.build(context.Background(), func(yield func(layer.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// shell is RUN with a script, in which every program is busybox's.
func shell(script string, change func(*pb.ExecOp)) *pb.ExecOp {
	op := &pb.ExecOp{
		Meta:   &pb.Meta{Args: []string{"/bin/sh", "-ec", script}, Cwd: "/", RemoveMountStubsRecursive: true},
		Mounts: []*pb.Mount{{Dest: "/", Output: 0}},
	}
	if change != nil {
		change(op)
	}
	return op
}

func inputMount(m *pb.Mount) func(*pb.ExecOp) {
	return func(op *pb.ExecOp) { op.Mounts = append(op.Mounts, m) }
}

// tryStep runs an operation and returns its results and output.
func tryStep(ctx context.Context, env *Env, op *pb.ExecOp, inputs ...*Ref) ([]*Ref, string, error) {
	v := &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: op}}, Meta: &pb.OpMetadata{}, Inputs: make([]llb.Edge, len(inputs)), Name: "RUN"}
	o, err := newExecOp(env, v)
	if err != nil {
		return nil, "", err
	}
	in := make([]solver.Result, len(inputs))
	for i, r := range inputs {
		in[i] = r
	}
	sink, out := logs()
	res, err := o.Exec(ctx, in, sink)
	refs := make([]*Ref, len(res))
	for i, r := range res {
		refs[i] = r.(*Ref)
	}
	return refs, out.String(), err
}

func runStep(t testing.TB, env *Env, op *pb.ExecOp, inputs ...*Ref) ([]*Ref, string) {
	t.Helper()
	refs, out, err := tryStep(context.Background(), env, op, inputs...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		for _, r := range refs {
			r.Close()
		}
	})
	return refs, out
}

func TestStepsBecomeLayersOfTheirChanges(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	out, log := runStep(t, env, shell("echo hi; busybox mkdir -p a/b; echo x >a/b/f; busybox chmod 4755 a/b/f; busybox ln -s f a/b/l; busybox rm old/file", nil), base)
	want := "a/ drwxr-xr-x\na/b/ drwxr-xr-x\na/b/f urwxr-xr-x x\na/b/l Lrwxrwxrwx -> f\nold/ drwxr-xr-x\nold/.wh.file ----------\n"
	if diff := cmp.Diff(want, changes(t, out[0])); diff != "" {
		t.Error(diff)
	}
	if log != "hi\n" {
		t.Errorf("output %q", log)
	}
	if n := len(out[0].Layers()); n != 2 {
		t.Errorf("%d layers", n)
	}
	next, _ := runStep(t, env, shell("busybox cat a/b/l; busybox test ! -e old/file; echo y >>a/b/f; busybox chmod 4755 a/b/f", nil), out[0])
	if diff := cmp.Diff("a/ drwxr-xr-x\na/b/ drwxr-xr-x\na/b/f urwxr-xr-x x\ny\n", changes(t, next[0])); diff != "" {
		t.Error(diff)
	}
}

func TestStepThatChangesNothingIsAnEmptyLayer(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	mounts := func(op *pb.ExecOp) {
		op.Mounts = append(op.Mounts,
			&pb.Mount{Input: -1, Dest: "/some/where/tmp", Output: -1, MountType: pb.MountType_TMPFS},
			&pb.Mount{Input: -1, Dest: "/old/cache", Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}})
	}
	out, _ := runStep(t, env, shell("true", mounts), base)
	if got := changes(t, out[0]); got != "" {
		t.Errorf("changes:\n%s", got)
	}
	again, _ := runStep(t, env, shell("true", nil), base)
	if out[0].ID() != again[0].ID() {
		t.Error("two steps without changes differ")
	}
	// Two equal layers on each other can be mounted.
	if out, _ = runStep(t, env, shell("true", nil), again[0]); len(out[0].Layers()) != 3 {
		t.Errorf("%d layers", len(out[0].Layers()))
	}
	runStep(t, env, shell("true", nil), out[0])
}

func TestStepsSeeWhatTheDefinitionSays(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	env.ResolvConf = []byte("nameserver 192.0.2.1\n")
	env.Secrets = secretMap{"s": "geheim"}
	base := busybox(t, env)
	_, log := runStep(t, env, shell(`
		busybox id -u; busybox id -G; busybox pwd; busybox hostname; busybox cat /etc/resolv.conf; busybox grep db /etc/hosts
		echo $VAR $SECRET $http_proxy $PATH; ulimit -n; busybox cat /run/s; busybox stat -c '%u %g %a' /run/s /new/dir
		busybox df -m /t | busybox awk 'NR==2{print $2}'; busybox df -m /dev/shm | busybox awk 'NR==2{print $2}'; busybox touch /tmp/x`,
		func(op *pb.ExecOp) {
			op.Meta.User, op.Meta.Cwd, op.Meta.Hostname = "bob", "/new/dir", "myhost"
			op.Meta.Env = []string{"VAR=value"}
			op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "http://proxy"}
			op.Meta.ExtraHosts = []*pb.HostIP{{Host: "db", IP: "10.1.2.3"}}
			op.Meta.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 77, Hard: 88}}
			op.Secretenv = []*pb.SecretEnv{{ID: "s", Name: "SECRET"}}
			op.Mounts = append(op.Mounts,
				&pb.Mount{Input: -1, Dest: "/run/s", Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s", Uid: 1000, Gid: 5, Mode: 0o400}},
				&pb.Mount{Input: -1, Dest: "/t", Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: 3 << 20}},
				&pb.Mount{Input: -1, Dest: "/dev/shm", Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: 5 << 20}})
		}), base)
	want := `1000
1000 10
/new/dir
myhost
nameserver 192.0.2.1
10.1.2.3	db
value geheim http://proxy /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
77
geheim1000 5 400
0 0 755
3
5
`
	if diff := cmp.Diff(want, log); diff != "" {
		t.Error(diff)
	}
}

func TestSecretsLeaveNoTrace(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	memory := t.TempDir() // others' steps leave theirs elsewhere
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(memory, unix.MNT_DETACH) })
	t.Setenv("XDG_RUNTIME_DIR", memory)
	env.Secrets = secretMap{"s": "geheim"}
	base := busybox(t, env)
	before := stepScratch(t)
	out, _ := runStep(t, env, shell("busybox test -s /run/secrets/s", inputMount(&pb.Mount{
		Input: -1, Dest: "/run/secrets/s", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s", Mode: 0o400},
	})), base)
	if got := changes(t, out[0]); got != "" {
		t.Errorf("changes:\n%s", got)
	}
	if diff := cmp.Diff(before, stepScratch(t)); diff != "" {
		t.Errorf("left in memory: %s", diff)
	}
	_, _, err := tryStep(context.Background(), env, shell("true", inputMount(&pb.Mount{
		Input: -1, Dest: "/s", Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none"},
	})), base)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "--secret id=none") {
		t.Errorf("missing secret: %v", err)
	}
	runStep(t, env, shell("busybox test ! -e /s", inputMount(&pb.Mount{
		Input: -1, Dest: "/s", Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none", Optional: true},
	})), base)
}

// stepScratch lists what steps have in memory right now.
func stepScratch(t *testing.T) []string {
	t.Helper()
	dir := memoryDir(&Env{})
	if dir != os.Getenv("XDG_RUNTIME_DIR") {
		t.Fatalf("steps keep files in %q", dir)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		if strings.HasPrefix(n.Name(), "den-step-") {
			out = append(out, n.Name())
		}
	}
	return out
}

func TestInputsAreMountedByPart(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	lower := testRef(t, env, testFile{name: "d/"}, testFile{name: "d/low", content: "low"}, testFile{name: "link", link: "/d"})
	in, _ := runStep(t, env, shell("echo high >/in/d/high", func(op *pb.ExecOp) {
		op.Mounts = append(op.Mounts, &pb.Mount{Input: 1, Dest: "/in", Output: 1})
	}), base, lower)
	src := in[1] // two layers, the upper made by a step
	if got := changes(t, src); got != "d/ drwxr-xr-x\nd/high -rw-r--r-- high\n" {
		t.Errorf("second result:\n%s", got)
	}
	for _, tt := range []struct {
		name, script string
		mount        *pb.Mount
	}{
		{"directory", "busybox cat /m/low /m/high; ! (echo x >/m/f) 2>/dev/null", &pb.Mount{Selector: "/d", Readonly: true}},
		{"by a link", "busybox cat /m/low /m/high; ! (echo x >/m/f) 2>/dev/null", &pb.Mount{Selector: "/link", Readonly: true}},
		{"writable", "busybox cat /m/low /m/high; echo x >/m/f; busybox rm /m/low", &pb.Mount{Selector: "/d"}},
		{"whole", "busybox cat /m/d/low /m/d/high; ! (echo x >/m/f) 2>/dev/null", &pb.Mount{Readonly: true}},
		{"whole and writable", "busybox cat /m/d/low /m/d/high; echo x >/m/f", &pb.Mount{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.mount.Input, tt.mount.Dest, tt.mount.Output = 1, "/m", -1
			out, log := runStep(t, env, shell(tt.script, inputMount(tt.mount)), base, src)
			if log != "lowhigh\n" {
				t.Errorf("output %q", log)
			}
			if got := changes(t, out[0]); got != "" {
				t.Errorf("changes of the root:\n%s", got)
			}
		})
	}
	t.Run("one file", func(t *testing.T) {
		_, log := runStep(t, env, shell("busybox cat /etc/low; ! (echo x >/etc/low) 2>/dev/null", inputMount(&pb.Mount{
			Input: 1, Dest: "/etc/low", Output: -1, Selector: "d/low", Readonly: true,
		})), base, src)
		if log != "low" {
			t.Errorf("read-only: %q", log)
		}
		_, log = runStep(t, env, shell("echo more >>/etc/low; busybox cat /etc/low", inputMount(&pb.Mount{
			Input: 1, Dest: "/etc/low", Output: -1, Selector: "d/low",
		})), base, src)
		if log != "lowmore\n" {
			t.Errorf("writable: %q", log)
		}
	})
	if got := content(t, src); got != "d/ drwxr-xr-x\nd/high -rw-r--r-- high\nd/low -rw-r--r-- low\nlink Lrwxrwxrwx -> /d\n" {
		t.Errorf("a step wrote through to its input:\n%s", got)
	}
}

func TestCacheMountsOutliveSteps(t *testing.T) {
	root := t.TempDir()
	env := rootEnv(t, root)
	base := busybox(t, env)
	seed := testRef(t, env, testFile{name: "cache/", mode: 0o770, uid: 7})
	mount := func(op *pb.ExecOp) {
		op.Mounts = append(op.Mounts, &pb.Mount{
			Input: 1, Dest: "/c", Selector: "/cache", Output: -1, MountType: pb.MountType_CACHE,
			CacheOpt: &pb.CacheOpt{ID: "mine", Sharing: pb.CacheSharingOpt_LOCKED},
		})
	}
	out, log := runStep(t, env, shell("busybox stat -c '%u %a' /c; echo kept >/c/f", mount), base, seed)
	if log != "7 770\n" {
		t.Errorf("a fresh cache mount is %q, not as its base", log)
	}
	if got := changes(t, out[0]); got != "" {
		t.Errorf("the cache is in the layer:\n%s", got)
	}
	other := rootEnv(t, root) // as another process
	if _, log = runStep(t, other, shell("busybox cat /c/f", mount), busybox(t, other), seed); log != "kept\n" {
		t.Errorf("second step sees %q", log)
	}
}

func TestFailedStepsSayHowTheyEnded(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	for _, tt := range []struct {
		op   *pb.ExecOp
		code uint32
		want string
	}{
		{shell("exit 7", nil), 7, `process "/bin/sh -ec exit 7" did not complete successfully: exit code: 7`},
		{shell("busybox sh -c 'busybox kill -9 $$' || exit $?", nil), 137, "exit code: 137"},
		{&pb.ExecOp{Meta: &pb.Meta{Args: []string{"nowhere"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/"}}}, 127, `exec: "nowhere": executable file not found in $PATH`},
		{&pb.ExecOp{Meta: &pb.Meta{Args: []string{"/etc/passwd"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/"}}}, 126, "permission denied"},
	} {
		_, _, err := tryStep(context.Background(), env, tt.op, base)
		var exit *gwpb.ExitError
		if !errors.As(err, &exit) || exit.ExitCode != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: got %v, want code %d and %q", tt.op.Meta.Args, err, tt.code, tt.want)
		}
	}
	runStep(t, env, shell("exit 3", func(op *pb.ExecOp) { op.Meta.ValidExitCodes = []int32{3} }), base)
}

func TestCancelledStepEndsAndLeavesNothing(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	ctx, cancel := context.WithCancelCause(context.Background())
	because := errors.New("because")
	v := &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: shell("echo started; busybox sleep 1000", nil)}}, Meta: &pb.OpMetadata{}, Inputs: make([]llb.Edge, 1)}
	op, err := newExecOp(env, v)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	_, err = op.Exec(ctx, []solver.Result{base}, progress.Func(func(e progress.Event) {
		if e.Log != nil {
			cancel(because)
		}
	}))
	if !errors.Is(err, because) || time.Since(started) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(started), err)
	}
	left, err := os.ReadDir(env.Store.Root() + "/tmp")
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEndlessOutputOfAStepIsBounded(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	_, log, err := tryStep(context.Background(), env, shell("busybox yes | busybox head -c 20000000; echo last; exit 1", nil), base)
	if err == nil || len(log) > maxLogBytes+logTailBytes+1000 || !strings.HasSuffix(log, "last\n") {
		t.Errorf("%d bytes of output, end %q, %v", len(log), log[max(0, len(log)-20):], err)
	}
}

func TestNetworkNoneHasNoNetwork(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	none := func(op *pb.ExecOp) { op.Network = pb.NetMode_NONE }
	if _, log := runStep(t, env, shell("busybox awk 'NR>2{print $1}' /proc/net/dev", none), base); log != "lo:\n" {
		t.Errorf("devices %q", log)
	}
}

func TestInsecureStepsHaveNoFilter(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	env.Entitlements = []string{"security.insecure"}
	base := busybox(t, env)
	const script = "busybox awk '/^Seccomp:/{print $2}' /proc/self/status"
	if _, log := runStep(t, env, shell(script, nil), base); log != "2\n" {
		t.Errorf("plain: seccomp mode %q", log)
	}
	insecure := func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE }
	if _, log := runStep(t, env, shell(script, insecure), base); log != "0\n" {
		t.Errorf("insecure: seccomp mode %q", log)
	}
}

func TestReadOnlyRootCannotBeWritten(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	base := busybox(t, env)
	runStep(t, env, shell("! (echo x >/f) 2>/dev/null", func(op *pb.ExecOp) { op.Mounts[0].Readonly, op.Mounts[0].Output = true, -1 }), base)
}

func BenchmarkStep(b *testing.B) {
	env := rootEnv(b, b.TempDir())
	base := busybox(b, env)
	for b.Loop() {
		out, _, err := tryStep(context.Background(), env, shell("echo x >f", nil), base)
		if err != nil {
			b.Fatal(err)
		}
		out[0].Close()
	}
}

func TestStepsRunOnManyLayers(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	r := busybox(t, env)
	for i := range 120 {
		next, err := env.merge(context.Background(), []*Ref{r, testRef(t, env, testFile{name: fmt.Sprintf("f%03d", i), content: "x"})}, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.Close() })
		r = next
	}
	_, log := runStep(t, env, shell("echo f* | busybox wc -w", inputMount(&pb.Mount{Input: 0, Dest: "/m", Output: -1, Readonly: true})), r)
	if log != "120\n" {
		t.Errorf("the step sees %q", log)
	}
}

// expecter writes down what it is told.
type expecter struct {
	sandbox.Executor
	mu   sync.Mutex
	told []string
}

// Expect implements sandbox.Expecter.
func (e *expecter) Expect(_ context.Context, network string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, "expect "+network)
}

// Start implements sandbox.Executor.
func (e *expecter) Start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	e.mu.Lock()
	e.told = append(e.told, "start "+r.Network)
	e.mu.Unlock()
	return e.Executor.Start(ctx, r)
}

func TestStepIsExpectedBeforeItStarts(t *testing.T) {
	env := rootEnv(t, t.TempDir())
	e := &expecter{Executor: env.Exec}
	env.Exec = e
	base := busybox(t, env)
	runStep(t, env, shell("busybox true", func(op *pb.ExecOp) { op.Network = pb.NetMode_NONE }), base)
	if diff := cmp.Diff([]string{"expect none", "start none"}, e.told); diff != "" {
		t.Error(diff)
	}
}
