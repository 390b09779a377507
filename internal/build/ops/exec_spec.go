package ops

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd/errdefs"

	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/tree"
)

// defaultHostname is what a step sees where the build names no host name. It
// is BuildKit's, since it finds its way into what steps make.
const defaultHostname = "buildkitsandbox"

// defaultPath is the PATH of a step whose image has none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// request describes the command to the executor.
func (s *step) request(ctx context.Context) (*sandbox.Request, error) {
	meta := s.op.Meta
	who, err := s.user(ctx)
	if err != nil {
		return nil, err
	}
	env, err := s.environ(ctx)
	if err != nil {
		return nil, err
	}
	hostname := meta.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{
		Args: meta.Args, Env: env, Cwd: meta.Cwd, Hostname: hostname,
		UID: who.uid, GID: who.gid, Groups: who.allGroups(),
		Insecure:     s.op.Security == pb.SecurityMode_INSECURE,
		ReadOnlyRoot: s.readonly,
		ShmSizeBytes: s.shmBytes,
		Rlimits:      rlimits(meta.Ulimit),
		Resources:    resources(s.v.Meta.GetLinuxResources()),
	})
	if err != nil {
		return nil, err
	}
	files, err := s.networkFiles(ctx, hostname)
	if err != nil {
		return nil, err
	}
	id := "build-" + rand.Text()
	if parent := s.cgroupParent(); parent != "" {
		spec.Linux.CgroupsPath = path.Join("/", parent, "den", id)
	}
	return &sandbox.Request{
		ID: id, Spec: spec, Root: s.root, Mounts: append(files, s.mounts...), Network: networkOf(s.op), Warn: s.warn, Wrote: s.wrote,
	}, nil
}

// networkOf is the network of a command's sandbox.
func networkOf(op *pb.ExecOp) string {
	if op.Network == pb.NetMode_NONE {
		return sandbox.NetworkNone
	}
	return sandbox.NetworkHost
}

func (s *step) cgroupParent() string {
	if p := s.op.Meta.CgroupParent; p != "" {
		return p
	}
	return s.env.CgroupParent
}

func (s *step) warn(text string) {
	s.sink.Event(progress.Event{Warning: &progress.Warning{Vertex: s.v.Digest, Level: 1, Short: []byte(text)}})
}

// user finds out who the command runs as.
func (s *step) user(ctx context.Context) (execUser, error) {
	if u, ok := numericUser(s.op.Meta.User); ok {
		return u, nil
	}
	var fs tree.FS // of scratch: none
	if s.rootRef != nil {
		view, done, err := s.rootRef.FS(ctx)
		if err != nil {
			return execUser{}, err
		}
		defer done()
		fs = view
	}
	return s.env.lookUpUser(fs, s.op.Meta.User)
}

// allGroups are the supplementary groups, the primary one first as runc wants
// it.
func (u execUser) allGroups() []uint32 {
	if slices.Contains(u.groups, u.gid) {
		return u.groups
	}
	return append([]uint32{u.gid}, u.groups...)
}

// environ is the command's environment: the build's, then the proxies and the
// secrets, which are in no cache key and no image.
func (s *step) environ(ctx context.Context) ([]string, error) {
	env := slices.Concat(s.op.Meta.Env, proxyEnv(s.op.Meta.ProxyEnv))
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append(env, defaultPath)
	}
	for _, want := range s.op.Secretenv {
		value, err := s.env.secret(ctx, want.ID)
		if err != nil && !(want.Optional && isNoSecret(err)) {
			return nil, fmt.Errorf("environment variable %s: %w", want.Name, err)
		}
		env = append(env, want.Name+"="+string(value))
	}
	return env, nil
}

// proxyEnv are the variables that programs look for proxies in, in both
// spellings.
func proxyEnv(p *pb.ProxyEnv) []string {
	if p == nil {
		return nil
	}
	var out []string
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HttpProxy},
		{"HTTPS_PROXY", p.HttpsProxy},
		{"FTP_PROXY", p.FtpProxy},
		{"NO_PROXY", p.NoProxy},
		{"ALL_PROXY", p.AllProxy},
	} {
		if v.value != "" {
			out = append(out, v.name+"="+v.value, strings.ToLower(v.name)+"="+v.value)
		}
	}
	return out
}

func rlimits(ulimits []*pb.Ulimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, u := range ulimits {
		if u != nil {
			out = append(out, specs.POSIXRlimit{
				Type: "RLIMIT_" + strings.ToUpper(u.Name), Hard: uint64(u.Hard), Soft: uint64(u.Soft),
			})
		}
	}
	return out
}

// resources are the limits on a command, or nil.
func resources(r *pb.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	out := &specs.LinuxResources{}
	if r.Memory != 0 || r.MemorySwap != 0 {
		out.Memory = &specs.LinuxMemory{}
		if r.Memory != 0 {
			out.Memory.Limit = &r.Memory
		}
		if r.MemorySwap != 0 {
			out.Memory.Swap = &r.MemorySwap
		}
	}
	cpu := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CpuShares != 0 {
		cpu.Shares = &r.CpuShares
	}
	if r.CpuQuota != 0 {
		cpu.Quota = &r.CpuQuota
	}
	if r.CpuPeriod != 0 {
		cpu.Period = &r.CpuPeriod
	}
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	return out
}

// maxSecretBytes is BuildKit's bound on a secret.
const maxSecretBytes = 500 << 10

// secret returns a secret's value.
func (e *Env) secret(ctx context.Context, id string) ([]byte, error) {
	if id == "" {
		return nil, fmt.Errorf("secret: no id: %w", errdefs.ErrInvalidArgument)
	}
	if e.Secrets == nil {
		return nil, fmt.Errorf("secret %s: not given to this build; add --secret id=%s,src=FILE: %w", id, id, errdefs.ErrNotFound)
	}
	value, err := e.Secrets.GetSecret(ctx, id)
	switch {
	case err != nil && isNoSecret(err):
		return nil, fmt.Errorf("secret %s: not given to this build; add --secret id=%s,src=FILE: %w", id, id, errdefs.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("secret %s: %w", id, err)
	case len(value) > maxSecretBytes:
		return nil, fmt.Errorf("secret %s: %d bytes, the most is %d: %w", id, len(value), maxSecretBytes, oci.ErrTooLarge)
	}
	return value, nil
}

func isNoSecret(err error) bool {
	return errdefs.IsNotFound(err) || errors.Is(err, secrets.ErrNotFound)
}
