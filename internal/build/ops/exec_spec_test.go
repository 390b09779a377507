package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/oci"
	"den/internal/progress"
)

// etcFS is a view of an /etc with these files.
type etcFS map[string]string

func (f etcFS) name(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, "/"), "etc/") }

func (f etcFS) Lstat(p string) (*oci.Entry, error) {
	if p := strings.Trim(p, "/"); p == "etc" || p == "" || p == "." {
		return &oci.Entry{Path: p, Mode: syscall.S_IFDIR | 0o755}, nil
	}
	text, ok := f[f.name(p)]
	if !ok {
		return nil, &os.PathError{Op: "lstat", Path: p, Err: os.ErrNotExist}
	}
	return &oci.Entry{Path: p, Mode: syscall.S_IFREG | 0o644, Size: int64(len(text))}, nil
}

func (f etcFS) Open(p string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(f[f.name(p)])), nil
}
func (f etcFS) ReadDir(string) ([]*oci.Entry, error) { return nil, nil }
func (f etcFS) Readlink(string) (string, error)      { return "", os.ErrInvalid }
func (f etcFS) Close() error                         { return nil }

func TestUsersAreFoundAsDockerFindsThem(t *testing.T) {
	etc := etcFS{
		"passwd": "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n",
		"group":  "root:x:0:root\nwheel:x:10:root,bob\nbob:x:1001:\nstaff:x:50:\n",
	}
	for _, tt := range []struct {
		spec string
		want execUser
	}{
		{"", execUser{groups: []uint32{0, 10}}},
		{"root", execUser{groups: []uint32{0, 10}}},
		{"bob", execUser{uid: 1000, gid: 1001, groups: []uint32{10}}},
		{"1000", execUser{uid: 1000, gid: 1001, groups: []uint32{10}}},
		{"bob:staff", execUser{uid: 1000, gid: 50}},
		{"bob:7", execUser{uid: 1000, gid: 7}},
		{"4242", execUser{uid: 4242}},
		{"1:2", execUser{uid: 1, gid: 2}},
		{"root:root", execUser{}},
	} {
		got, err := (&Env{}).lookUpUser(etc, tt.spec)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(execUser{})); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", tt.spec, err, diff)
		}
	}
	if _, err := (&Env{}).lookUpUser(etc, "nobody-here"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown user: %v", err)
	}
}

func TestScratchHasARootUser(t *testing.T) {
	for _, spec := range []string{"", "0", "5:6"} {
		if _, err := (&Env{}).lookUpUser(nil, spec); err != nil {
			t.Errorf("%q: %v", spec, err)
		}
	}
	if _, err := (&Env{}).lookUpUser(nil, "bob"); err == nil {
		t.Error("a name without a file was found")
	}
}

func TestHugePasswdIsRefused(t *testing.T) {
	etc := etcFS{"passwd": strings.Repeat("x:x:1:1:::\n", maxUserFileBytes/10), "group": ""}
	if _, err := (&Env{}).lookUpUser(etc, ""); !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func testStep(env *Env, op *pb.ExecOp) *step {
	return &step{
		execOp: &execOp{env: env, v: &llb.Vertex{Meta: &pb.OpMetadata{}}, op: op},
		sink:   progress.Discard,
	}
}

func TestEnvironmentHasProxiesSecretsAndAPath(t *testing.T) {
	op := plainRun(func(op *pb.ExecOp) {
		op.Meta.Env = []string{"A=1"}
		op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "http://p", NoProxy: "local"}
		op.Secretenv = []*pb.SecretEnv{{ID: "s", Name: "S"}, {ID: "none", Name: "O", Optional: true}}
	})
	env := &Env{Secrets: secretMap{"s": "value"}}
	got, err := testStep(env, op).environ(context.Background())
	want := []string{
		"A=1", "HTTP_PROXY=http://p", "http_proxy=http://p", "NO_PROXY=local", "no_proxy=local", defaultPath, "S=value", "O=",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if len(op.Meta.Env) != 1 {
		t.Error("the operation was changed")
	}
	op.Secretenv[1].Optional = false
	if _, err := testStep(env, op).environ(context.Background()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "--secret id=none") {
		t.Errorf("required secret: %v", err)
	}
}

type failingSecrets struct{ err error }

func (f failingSecrets) GetSecret(context.Context, string) ([]byte, error) { return nil, f.err }

func TestOnlyMissingSecretsAreOptional(t *testing.T) {
	op := plainRun(func(op *pb.ExecOp) { op.Secretenv = []*pb.SecretEnv{{ID: "s", Name: "S", Optional: true}} })
	for _, tt := range []struct {
		err error
		ok  bool
	}{
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), true},
		{fmt.Errorf("x: %w", secrets.ErrNotFound), true},
		{os.ErrPermission, false},
	} {
		_, err := testStep(&Env{Secrets: failingSecrets{tt.err}}, op).environ(context.Background())
		if (err == nil) != tt.ok {
			t.Errorf("%v: %v", tt.err, err)
		}
	}
	if _, err := (&Env{Secrets: secretMap{"big": strings.Repeat("x", maxSecretBytes+1)}}).secret(context.Background(), "big"); !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("huge secret: %v", err)
	}
}

func TestHostsFileHasTheBuildsHosts(t *testing.T) {
	op := plainRun(func(op *pb.ExecOp) {
		op.Network = pb.NetMode_NONE
		op.Meta.ExtraHosts = []*pb.HostIP{{Host: "db", IP: "10.0.0.1"}, {Host: "out", IP: "host-gateway"}, {Host: "six", IP: "fd00::1"}}
	})
	env := &Env{HostGateway: netip.MustParseAddr("172.17.0.1")}
	got, err := testStep(env, op).hosts("me")
	want := "127.0.0.1\tlocalhost me\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n172.17.0.1\tout\nfd00::1\tsix\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	for _, bad := range []*pb.HostIP{{Host: "a\nb", IP: "1.1.1.1"}, {Host: "a", IP: "x"}, {Host: "a", IP: ""}} {
		op.Meta.ExtraHosts = []*pb.HostIP{bad}
		if _, err := testStep(env, op).hosts("me"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestOnlyOtherMachinesComeFromTheOuterHosts(t *testing.T) {
	outer := "127.0.0.1 localhost\n::1 localhost ip6-localhost\nfe00::0 ip6-localnet\nff02::1 ip6-allnodes\n" +
		"172.18.0.5\tpostgres db # service\nnonsense\n#10.0.0.1 off\n10.0.0.2\n"
	if got, want := string(foreignHosts([]byte(outer))), "172.18.0.5\tpostgres db\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestForeignPlatformsSayHowToRegister(t *testing.T) {
	env := &Env{}
	if err := env.canRun(t.Context(), oci.Platform{OS: "linux", Architecture: runtime.GOARCH}); err != nil {
		t.Error(err)
	}
	if err := env.canRun(t.Context(), oci.Platform{OS: "windows", Architecture: "amd64"}); !errdefs.IsNotImplemented(err) {
		t.Errorf("windows: %v", err)
	}
	err := env.canRun(t.Context(), oci.Platform{OS: "linux", Architecture: "mips64"})
	if err == nil {
		t.Skip("mips64 is registered here")
	}
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "tonistiigi/binfmt --install mips64") {
		t.Errorf("mips64: %v", err)
	}
}

// Emulators of the machine do not count where the rung has no use for them.
func TestRungWithoutEmulatorsRefusesForeignPlatforms(t *testing.T) {
	env := &Env{Emulators: func(context.Context) error { return errors.New("the rung has none") }}
	if err := env.canRun(t.Context(), oci.Platform{OS: "linux", Architecture: runtime.GOARCH}); err != nil {
		t.Error(err)
	}
	if err := env.canRun(t.Context(), oci.Platform{OS: "linux", Architecture: "riscv64"}); err == nil || err.Error() != "platform linux/riscv64: the rung has none" {
		t.Error(err)
	}
}

func TestEntitlementsAreAskedFor(t *testing.T) {
	vertex := func(op *pb.ExecOp) *llb.Vertex {
		return &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: op}}, Meta: &pb.OpMetadata{}}
	}
	host := plainRun(func(op *pb.ExecOp) { op.Network = pb.NetMode_HOST })
	insecure := plainRun(func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE })
	for _, op := range []*pb.ExecOp{host, insecure} {
		if _, err := newExecOp(&Env{}, vertex(op)); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "--allow ") {
			t.Errorf("not granted: %v", err)
		}
		if _, err := newExecOp(&Env{Entitlements: []string{"network.host", "security.insecure"}}, vertex(op)); err != nil {
			t.Errorf("granted: %v", err)
		}
	}
}

func TestBrokenExecOperationsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*pb.ExecOp){
		"no meta":       func(op *pb.ExecOp) { op.Meta = nil },
		"no arguments":  func(op *pb.ExecOp) { op.Meta.Args = nil },
		"no root":       func(op *pb.ExecOp) { op.Mounts[0].Dest = "/x" },
		"output gap":    func(op *pb.ExecOp) { op.Mounts[0].Output = 2 },
		"output twice":  func(op *pb.ExecOp) { op.Mounts = append(op.Mounts, &pb.Mount{Dest: "/y", Output: 0}) },
		"huge output":   func(op *pb.ExecOp) { op.Mounts[0].Output = 1 << 40 },
		"a CDI device":  func(op *pb.ExecOp) { op.CdiDevices = []*pb.CDIDevice{{Name: "nvidia.com/gpu"}} },
		"no such input": nil,
	} {
		op := plainRun(change)
		v := &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: op}}, Meta: &pb.OpMetadata{}}
		got, err := newExecOp(&Env{}, v)
		if name == "no such input" {
			_, err = got.CacheMap(context.Background(), progress.Discard)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
