package engine

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

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
	if len(args) == 0 || args[0] == "" {
		return nil, invalid("no command specified: give one, or an image with CMD or ENTRYPOINT")
	}
	who, err := c.lookupUser(first(req.User, cfg.User))
	if err != nil {
		return nil, err
	}
	sec := securityOptions{}
	for _, s := range req.Security {
		if err := security(s, &sec); err != nil {
			return nil, err
		}
	}
	o := sandbox.SpecOptions{
		Args: args, Env: c.environment(who.Home), Cwd: first(req.WorkingDir, cfg.WorkingDir, "/"),
		Hostname: c.hostname(), UID: uint32(who.Uid), GID: uint32(who.Gid),
		CapAdd: req.CapAdd, CapDrop: req.CapDrop, Terminal: req.TTY, ReadOnlyRoot: req.ReadOnly,
		ShmSizeBytes: req.ShmBytes, Resources: resources(req.Limits),
		NoNewPrivileges: sec.noNewPrivileges, NoSeccomp: sec.noSeccomp,
	}
	if !path.IsAbs(o.Cwd) {
		return nil, invalid("the working directory %q is invalid, it needs to be an absolute path", o.Cwd)
	}
	// With the primary one, or who drops that could read what is closed to its
	// group and open to others (CVE-2022-36109).
	o.Groups = []uint32{o.GID}
	for _, gid := range who.Sgids {
		if !slices.Contains(o.Groups, uint32(gid)) {
			o.Groups = append(o.Groups, uint32(gid))
		}
	}
	for _, u := range req.Ulimits {
		o.Rlimits = append(o.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: u.Soft, Hard: u.Hard})
	}
	spec, err := sandbox.DefaultSpec(o)
	if err != nil {
		return nil, err
	}
	c.refine(spec, sec)
	return spec, nil
}

// refine applies what DefaultSpec has no option for.
func (c *container) refine(spec *specs.Spec, sec securityOptions) {
	req := c.request
	if len(req.Sysctls) > 0 {
		spec.Linux.Sysctl = req.Sysctls
	}
	if sec.systemPaths {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	if req.TTY && req.Console != (Size{}) {
		spec.Process.ConsoleSize = &specs.Box{Height: uint(req.Console.Rows), Width: uint(req.Console.Cols)}
	}
	// What the user mounts takes the place of the default, and of all defaults below /dev.
	taken := map[string]bool{}
	for _, m := range req.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool {
		return taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")
	})
}

// securityOptions are what --security-opt asks for.
type securityOptions struct {
	noNewPrivileges, noSeccomp, systemPaths bool
}

// security reads one of docker's --security-opt values into o.
func security(s string, o *securityOptions) error {
	key, value, _ := strings.Cut(strings.Replace(s, ":", "=", 1), "=")
	switch {
	case key == "no-new-privileges":
		o.noNewPrivileges = value == "" || value == "true"
	case key == "seccomp" && value == "unconfined":
		o.noSeccomp = true
	case key == "seccomp" && value == "builtin":
	case key == "systempaths" && value == "unconfined":
		o.systemPaths = true
	case key == "apparmor", key == "label":
		// den loads no profile: the outer container's label stays.
	default:
		return invalid("security option %q: den knows no-new-privileges, seccomp=unconfined and systempaths=unconfined", s)
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
		if !ok { // NAME alone takes it away
			if i, seen := index[name]; seen {
				out[i] = ""
				delete(index, name)
			}
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
	return slices.DeleteFunc(out, func(e string) bool { return e == "" })
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
		if l.MemorySwapBytes == 0 { // as docker has it: as much swap as memory
			l.MemorySwapBytes = 2 * l.MemoryBytes
		}
		r.Memory.Swap = &l.MemorySwapBytes
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
		return nil, invalid("%v", err) // docker's text: unable to find user ...
	}
	if len(c.request.GroupAdd) > 0 {
		more, err := user.GetAdditionalGroups(c.request.GroupAdd, bytes.NewReader(group))
		if err != nil {
			return nil, invalid("%v", err)
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
