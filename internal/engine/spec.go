package engine

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/tree"
)

// defaultPath is what docker gives an image that sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command joins entrypoint and arguments as docker does: an entrypoint given by
// the user drops the image's command.
func command(req *RunRequest, config *oci.Image) []string {
	if req.Entrypoint != nil {
		return append(trimEmpty(req.Entrypoint), req.Args...)
	}
	args := req.Args
	if len(args) == 0 {
		args = config.Config.Cmd
	}
	return append(append([]string(nil), config.Config.Entrypoint...), args...)
}

// trimEmpty makes --entrypoint "" no entrypoint at all.
func trimEmpty(entrypoint []string) []string {
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		return nil
	}
	return append([]string(nil), entrypoint...)
}

func (c *container) spec() (*specs.Spec, error) {
	req, cfg := c.request, c.config.Config
	args := command(req, c.config)
	if len(args) == 0 {
		return nil, fmt.Errorf("no command specified: give one, or an image with CMD or ENTRYPOINT: %w", errdefs.ErrInvalidArgument)
	}
	who, err := c.lookupUser(first(req.User, cfg.User))
	if err != nil {
		return nil, err
	}
	o := sandbox.SpecOptions{
		Args: args, Env: c.environment(who.Home), Cwd: first(req.WorkingDir, cfg.WorkingDir, "/"),
		Hostname: c.hostname(), UID: uint32(who.Uid), GID: uint32(who.Gid),
		CapAdd: req.CapAdd, CapDrop: req.CapDrop, Terminal: req.TTY, ReadOnlyRoot: req.ReadOnly,
		ShmSizeBytes: req.ShmBytes, Resources: resources(req.Limits),
	}
	if !path.IsAbs(o.Cwd) {
		return nil, fmt.Errorf("working directory %q: want an absolute path: %w", o.Cwd, errdefs.ErrInvalidArgument)
	}
	for _, gid := range who.Sgids {
		o.Groups = append(o.Groups, uint32(gid))
	}
	for _, u := range req.Ulimits {
		o.Rlimits = append(o.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: u.Soft, Hard: u.Hard})
	}
	if err := security(req.Security, &o); err != nil {
		return nil, err
	}
	spec, err := sandbox.DefaultSpec(o)
	if err != nil {
		return nil, err
	}
	if len(req.Sysctls) > 0 && spec.Linux != nil {
		spec.Linux.Sysctl = req.Sysctls
	}
	return spec, nil
}

func security(options []string, o *sandbox.SpecOptions) error {
	for _, s := range options {
		key, value, _ := strings.Cut(strings.Replace(s, ":", "=", 1), "=")
		switch {
		case key == "no-new-privileges":
			o.NoNewPrivileges = value == "" || value == "true"
		case key == "seccomp" && value == "unconfined":
			o.NoSeccomp = true
		case key == "apparmor", key == "label", key == "systempaths" && value == "":
			// den loads no profile: the outer container's label stays.
		default:
			return fmt.Errorf("security option %q: %w: den knows no-new-privileges and seccomp=unconfined", s, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (c *container) hostname() string { return first(c.request.Hostname, c.record.ID[:12]) }

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// environment is the image's, overridden by the request's; later entries win
// and each name appears once.
func (c *container) environment(home string) []string {
	env := []string{defaultPath, "HOSTNAME=" + c.hostname()}
	if c.request.TTY {
		env = append(env, "TERM=xterm")
	}
	env = append(append(env, c.config.Config.Env...), c.request.Env...)
	index := map[string]int{}
	var out []string
	for _, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok {
			continue
		}
		if i, seen := index[name]; seen {
			out[i] = e
			continue
		}
		index[name] = len(out)
		out = append(out, e)
	}
	if _, ok := index["HOME"]; !ok {
		out = append(out, "HOME="+home)
	}
	return out
}

func resources(l Limits) *specs.LinuxResources {
	if l == (Limits{}) {
		return nil
	}
	r := &specs.LinuxResources{}
	if l.MemoryBytes > 0 || l.MemorySwapBytes != 0 {
		r.Memory = &specs.LinuxMemory{}
		if l.MemoryBytes > 0 {
			r.Memory.Limit = &l.MemoryBytes
		}
		if l.MemorySwapBytes != 0 {
			r.Memory.Swap = &l.MemorySwapBytes
		}
	}
	if l.CPUs > 0 || l.CPUShares > 0 || l.CpusetCPUs != "" {
		r.CPU = &specs.LinuxCPU{Cpus: l.CpusetCPUs}
		if l.CPUs > 0 {
			period := uint64(100_000) // microseconds, the kernel's default
			quota := int64(l.CPUs * float64(period))
			r.CPU.Period, r.CPU.Quota = &period, &quota
		}
		if l.CPUShares > 0 {
			r.CPU.Shares = &l.CPUShares
		}
	}
	if l.Pids != 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.Pids}
	}
	return r
}

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 16 << 20

// lookupUser resolves USER[:GROUP] against the image's own files.
func (c *container) lookupUser(spec string) (*user.ExecUser, error) {
	passwd, err := c.readFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := c.readFile("/etc/group")
	if err != nil {
		return nil, err
	}
	who, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return nil, fmt.Errorf("user %q: %w: %w", spec, err, errdefs.ErrInvalidArgument)
	}
	if len(c.request.GroupAdd) > 0 {
		more, err := user.GetAdditionalGroups(c.request.GroupAdd, bytes.NewReader(group))
		if err != nil {
			return nil, fmt.Errorf("group: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		who.Sgids = append(who.Sgids, more...)
	}
	return who, nil
}

// readFile reads a file of the image; one that is missing is empty.
func (c *container) readFile(name string) ([]byte, error) {
	p, err := tree.Resolve(c.view, name)
	if err != nil {
		return nil, err
	}
	r, err := c.view.Open(p)
	if err != nil {
		return nil, nil // an image without users is common
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxUserFile))
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	return b, nil
}

func opener(fs tree.FS, p string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return fs.Open(p) }
}

// mounts are the container's own: names, then binds, tmpfs and volumes in the
// order in which one may lie in another.
func (c *container) mounts() ([]oci.Mount, error) {
	files, err := c.nameFiles()
	if err != nil {
		return nil, err
	}
	out := files
	for _, m := range c.request.Mounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		switch m.Kind {
		case MountBind:
			if err := bindSource(m); err != nil {
				return nil, err
			}
			out = append(out, oci.Mount{Type: "bind", Source: m.Source, Target: m.Target, Options: append([]string{"rbind", mode}, m.Options...)})
		case MountTmpfs:
			options := append([]string{"nosuid", "nodev", "noexec", mode}, m.Options...)
			out = append(out, oci.Mount{Type: "tmpfs", Source: "tmpfs", Target: m.Target, Options: options})
		}
	}
	for _, v := range c.volumes {
		mode := "rw"
		if v.mount.ReadOnly {
			mode = "ro"
		}
		out = append(out, oci.Mount{Type: "bind", Source: v.dir, Target: v.mount.Target, Options: []string{"rbind", mode}, Hold: []*os.File{v.hold}})
	}
	sortByDepth(out[len(files):])
	return out, nil
}

func bindSource(m Mount) error {
	_, err := os.Stat(m.Source)
	if err == nil {
		return nil
	}
	if os.IsNotExist(err) && m.CreateSource {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fmt.Errorf("bind %s: %w", m.Source, err)
		}
		return nil
	}
	return fmt.Errorf("bind source %s: %w: %w", m.Source, err, errdefs.ErrInvalidArgument)
}

// nameFiles writes the container's hostname, hosts and resolv.conf.
func (c *container) nameFiles() ([]oci.Mount, error) {
	hosts, err := c.hosts()
	if err != nil {
		return nil, err
	}
	resolv, err := c.resolvConf()
	if err != nil {
		return nil, err
	}
	var out []oci.Mount
	for _, f := range []struct {
		name string
		text []byte
	}{
		{"hostname", []byte(c.hostname() + "\n")}, {"hosts", hosts}, {"resolv.conf", resolv},
	} {
		file := filepath.Join(c.dir.Path(), f.name)
		if err := os.WriteFile(file, f.text, 0o644); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.record.ID, err)
		}
		if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
			return nil, fmt.Errorf("container %s: %w", c.record.ID, err)
		}
		out = append(out, oci.Mount{Type: "bind", Source: file, Target: "/etc/" + f.name, Options: []string{"bind", "rw"}})
	}
	return out, nil
}
