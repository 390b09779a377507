package engine

import (
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/oci"
	"den/internal/sandbox"
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
	cwd := first(req.WorkingDir, cfg.WorkingDir, "/")
	if !path.IsAbs(cwd) {
		return nil, invalid("the working directory %q is invalid, it needs to be an absolute path", cwd)
	}
	spec, err := c.baseSpec(args, who, cwd, c.more.Privileged)
	if err != nil {
		return nil, err
	}
	return spec, c.refine(spec)
}

// baseSpec is docker's default specification for a program of the container's.
func (c *container) baseSpec(args []string, who *user.ExecUser, cwd string, insecure bool) (*specs.Spec, error) {
	req := c.request
	sec, err := securityOf(req.Security)
	if err != nil {
		return nil, err
	}
	o := sandbox.SpecOptions{
		Args: args, Env: c.environment(who.Home), Cwd: cwd,
		Hostname: c.hostname(), UID: uint32(who.Uid), GID: uint32(who.Gid),
		CapAdd: req.CapAdd, CapDrop: req.CapDrop, Terminal: req.TTY, ReadOnlyRoot: req.ReadOnly,
		ShmSizeBytes: req.ShmBytes, Resources: resources(req.Limits), Insecure: insecure,
		NoNewPrivileges: sec.noNewPrivileges, NoSeccomp: sec.noSeccomp,
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
	return sandbox.DefaultSpec(o)
}

// refine applies what DefaultSpec has no option for.
func (c *container) refine(spec *specs.Spec) error {
	req := c.request
	sec, err := securityOf(req.Security)
	if err != nil {
		return err
	}
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
	return c.refineMore(spec)
}

func securityOf(options []string) (sec securityOptions, err error) {
	for _, s := range options {
		if err := security(s, &sec); err != nil {
			return sec, err
		}
	}
	return sec, nil
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
		return invalid("security option %.200q: den knows no-new-privileges, seccomp=unconfined and systempaths=unconfined", s)
	}
	return nil
}

func (c *container) hostname() string {
	if c.request.Hostname == "" && c.record.Resident && c.more.NetworkMode == sandbox.NetworkHost {
		if name, err := os.Hostname(); err == nil { // as docker has it
			return name
		}
	}
	return first(c.request.Hostname, c.record.ID[:12])
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func resources(l Limits) *specs.LinuxResources {
	if l == (Limits{}) {
		return nil
	}
	r := &specs.LinuxResources{}
	if l.MemoryBytes > 0 || l.MemorySwapBytes != 0 || l.MemoryReservationBytes > 0 {
		r.Memory = &specs.LinuxMemory{}
		if l.MemoryReservationBytes > 0 {
			r.Memory.Reservation = &l.MemoryReservationBytes
		}
		if l.MemoryBytes > 0 {
			r.Memory.Limit = &l.MemoryBytes
		}
		if l.MemorySwapBytes == 0 { // as docker has it: as much swap as memory
			l.MemorySwapBytes = 2 * l.MemoryBytes
		}
		r.Memory.Swap = &l.MemorySwapBytes
	}
	if l.CPUs > 0 || l.CPUShares > 0 || l.CpusetCPUs != "" || l.CpusetMems != "" {
		r.CPU = &specs.LinuxCPU{Cpus: l.CpusetCPUs, Mems: l.CpusetMems}
		if l.CPUs > 0 {
			period := uint64(100_000) // microseconds, the kernel's default
			quota := int64(l.CPUs * float64(period))
			r.CPU.Period, r.CPU.Quota = &period, &quota
		}
		if l.CPUShares > 0 {
			r.CPU.Shares = &l.CPUShares
		}
	}
	if l.BlkioWeight > 0 {
		r.BlockIO = &specs.LinuxBlockIO{Weight: &l.BlkioWeight}
	}
	if l.Pids != 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.Pids}
	}
	return r
}
