package sentry

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sys"
)

// Sidecars of a tree in image form, beside it on disk.
const (
	suffixOpaque = ".opq"  // whiteouts at opaque paths, directly below
	suffixXattrs = ".xtar" // files with attributes, and devices, directly above
)

// builder turns a sandbox.Request into what is sent to a sentry.
type builder struct {
	r       *sandbox.Request
	filters *payloadFilters
	out     request
	files   []*os.File // sent with it
	own     []*os.File // closed when they are sent
	upper   *os.File   // the sandbox's, once it has taken it
	// quota of processor time in each period is den's to enforce; 0 is no limit.
	quota, period time.Duration
	// processors are those that the payload is kept to; nil is all.
	processors *unix.CPUSet
	shares     []share
	socks      []*os.File // the gofer's ends
}

// build makes the request; streams are already there.
func build(r *sandbox.Request, f *payloadFilters, streams *sandbox.Streams) (_ *builder, err error) {
	b := &builder{r: r, filters: f}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if err := b.check(); err != nil {
		return nil, err
	}
	if err := b.process(); err != nil {
		return nil, err
	}
	for i, f := range streams.Child {
		b.out.StdioFD[i] = -1
		if f != nil {
			b.out.StdioFD[i] = b.add(f)
		}
	}
	if err := b.root(); err != nil {
		return nil, fmt.Errorf("mount /: %w", err)
	}
	if err := b.mounts(); err != nil {
		return nil, err
	}
	for _, i := range r.Interfaces {
		d, err := deviceOf(i, len(b.files))
		if err != nil {
			return nil, err
		}
		b.add(i.Cable)
		b.out.Devices = append(b.out.Devices, d)
	}
	for _, f := range sandbox.Leases(r) {
		b.add(f)
	}
	return b, nil
}

// add sends f with the request.
func (b *builder) add(f *os.File) int {
	b.files = append(b.files, f)
	return len(b.files) - 1
}

// addOwn sends f and closes it then.
func (b *builder) addOwn(f *os.File) int {
	b.own = append(b.own, f)
	return b.add(f)
}

// close closes what was opened for the request.
func (b *builder) close() {
	for _, f := range append(b.own, b.socks...) {
		f.Close()
	}
	if b.upper != nil {
		b.upper.Close()
	}
	b.own, b.socks, b.upper = nil, nil, nil
}

// usualShares are those of everybody, cgroup-v1/cgroups.rst.
const usualShares = 1024

// check refuses what a sentry cannot do, and says what it leaves out.
func (b *builder) check() error {
	l := b.r.Spec.Linux
	for _, n := range l.Namespaces {
		if n.Path != "" {
			return fmt.Errorf("%s namespace %s: a sentry cannot join namespaces: %w", n.Type, n.Path, errdefs.ErrNotImplemented)
		}
	}
	switch {
	case b.r.Detach != "":
		return fmt.Errorf("a sandbox that outlives den: a sentry ends with it: %w", errdefs.ErrNotImplemented)
	case len(l.UIDMappings)+len(l.GIDMappings) > 0:
		return fmt.Errorf("a user namespace of its own: %w", errdefs.ErrNotImplemented)
	}
	if l.CgroupsPath != "" {
		b.warn("the cgroup " + l.CgroupsPath + " is not in force: the sentry's sandboxes have none")
	}
	if len(l.Sysctl) > 0 {
		b.warn("sysctls are not set: the sentry's kernel has its own")
	}
	if res := l.Resources; res != nil {
		if res.CPU != nil && res.CPU.Shares != nil && *res.CPU.Shares > 0 && *res.CPU.Shares != usualShares {
			b.warn("the weight of processors is not in force: the sentry's sandboxes have no cgroup")
		}
		if io := res.BlockIO; io != nil && io.Weight != nil && *io.Weight > 0 {
			b.warn("the weight of block devices is not in force: the sentry's sandboxes have no cgroup")
		}
	}
	if len(l.Devices) > 0 {
		b.warn("devices of the outer container are not there: the sentry's kernel has none of them")
	}
	return nil
}

// process fills what concerns the payload itself.
func (b *builder) process() error {
	s := b.r.Spec
	o := &b.out
	var err error
	if o.program, err = programOf(s.Process); err != nil {
		return err
	}
	o.Hostname, o.Domainname, o.Network = s.Hostname, s.Domainname, b.r.Network
	if o.Hostname == "" {
		if o.Hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	o.Masked, o.ReadOnly, o.Init = s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, b.r.Init
	o.limitSizes, b.quota, b.period = limitsOf(s.Linux.Resources)
	if res := s.Linux.Resources; res != nil && res.CPU != nil && res.CPU.Cpus != "" {
		set, err := parseProcessors(res.CPU.Cpus)
		if err != nil {
			return err
		}
		b.processors, o.Processors = &set, set.Count()
	}
	return b.seccomp(s.Linux.Seccomp)
}

// limitsOf are those of a specification; zero is none.
func limitsOf(r *specs.LinuxResources) (l limitSizes, quota, period time.Duration) {
	if r == nil {
		return l, 0, 0
	}
	if m := r.Memory; m != nil && m.Limit != nil {
		l.MaxMemoryBytes = max(*m.Limit, 0)
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		l.MaxPids = max(*p.Limit, 0)
	}
	if c := r.CPU; c != nil && c.Quota != nil && *c.Quota > 0 {
		micro := uint64(100_000) // cgroup-v2.rst, cpu.max
		if c.Period != nil && *c.Period > 0 {
			micro = *c.Period
		}
		quota, period = time.Duration(*c.Quota)*time.Microsecond, time.Duration(min(micro, 1_000_000))*time.Microsecond
	}
	return l, quota, period
}

// programOf is a process of a specification, without its streams.
func programOf(p *specs.Process) (program, error) {
	o := program{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids,
		Umask: 0o022, NoNewPrivs: p.NoNewPrivileges, TerminalFD: -1,
	}
	if p.User.Umask != nil {
		o.Umask = *p.User.Umask
	}
	if p.Terminal {
		o.Terminal = &size{}
		if c := p.ConsoleSize; c != nil {
			o.Terminal = &size{uint16(c.Height), uint16(c.Width)}
		}
	}
	if c := p.Capabilities; c != nil {
		for _, set := range []struct {
			to   *uint64
			from []string
		}{
			{&o.Bounding, c.Bounding}, {&o.Permitted, c.Permitted}, {&o.Effective, c.Effective},
			{&o.Inheritable, c.Inheritable}, {&o.Ambient, c.Ambient},
		} {
			caps, err := sys.ParseCaps(set.from)
			if err != nil {
				return o, err
			}
			*set.to = uint64(caps)
		}
	}
	for _, l := range p.Rlimits {
		nr, err := sandbox.RlimitNumber(l)
		if err != nil {
			return o, err
		}
		o.Rlimits = append(o.Rlimits, rlimit{nr, l.Soft, l.Hard})
	}
	return o, nil
}

func (b *builder) warn(s string) {
	if b.r.Warn != nil {
		b.r.Warn(s)
	}
}

// seccomp compiles the payload's filter.
func (b *builder) seccomp(p *specs.LinuxSeccomp) error {
	if p == nil {
		return nil
	}
	prog, err := sandbox.CompileSeccomp(p)
	if err == nil {
		b.out.Filter, err = b.filters.of(prog)
	}
	return err
}

// root describes the root file system.
func (b *builder) root() error {
	m := b.r.Root
	flags, err := sandbox.ParseMountOptions(m.Options)
	if err != nil {
		return err
	}
	readOnly := flags.Set&unix.MOUNT_ATTR_RDONLY != 0
	root := &b.out.Root
	root.BindFD, root.UpperFD = -1, -1
	root.ReadOnly = b.r.Spec.Root != nil && b.r.Spec.Root.Readonly
	switch m.Type {
	case "bind", "rbind", "":
		root.Writable = !readOnly
		if noExec(m.Source) {
			return errNoExec(m.Source)
		}
		root.BindFD, err = b.share(share{Path: m.Source, ReadOnly: readOnly})
		return err
	case "tmpfs": // an image without layers
		root.ReadOnly = root.ReadOnly || readOnly
		root.Writable = true
		return nil
	case "overlay":
		root.Writable = m.Upper != "" && !readOnly
		for _, p := range m.Lower {
			if noExec(p) {
				return errNoExec(p)
			}
		}
		if root.Lower, err = b.lower(m.Lower); err != nil || !root.Writable {
			return err
		}
		if b.upper, err = b.backing(filepath.Dir(m.Upper)); err != nil {
			return err
		}
		root.UpperFD = b.add(b.upper)
		return nil
	}
	return fmt.Errorf("type %.40q cannot be a root", m.Type)
}

// noExec reports whether programs cannot be mapped from where path lies. The sentry maps files
// of the outer container into the processes that run the payload's code, and one that
// this is refused for dies of SIGSEGV.
func noExec(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOEXEC != 0
}

func errNoExec(path string) error {
	return fmt.Errorf("%s lies on a file system that is mounted noexec, from which a sandbox of this rung can run nothing: keep the store elsewhere, or mount it without noexec: %w", path, errdefs.ErrFailedPrecondition)
}

// backing is a file without a name for what a sandbox writes.
func (b *builder) backing(dir string) (*os.File, error) {
	if noExec(dir) {
		b.warn(dir + " is mounted noexec: what the sandbox writes is kept in memory, so that it can run it")
		fd, err := unix.MemfdCreate("upper", unix.MFD_CLOEXEC)
		return os.NewFile(uintptr(fd), "upper"), err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "upper"), nil
	}
	f, err := os.CreateTemp(dir, ".upper-*") // not every file system knows such files
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// lower opens the parts of layers, top first.
func (b *builder) lower(paths []string) ([]lower, error) {
	var parts []lower
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if st.IsDir() {
			fd, err := b.share(share{Path: p, ReadOnly: true})
			if err != nil {
				return nil, err
			}
			parts = append(parts, lower{kindGofer, fd})
			continue
		}
		for _, part := range []struct {
			path string
			kind lowerKind
		}{{p + suffixXattrs, kindTar}, {p, kindImage}, {p + suffixOpaque, kindImage}} {
			f, err := os.Open(part.path)
			if os.IsNotExist(err) && part.path != p {
				continue
			}
			if err != nil {
				return nil, err
			}
			parts = append(parts, lower{part.kind, b.addOwn(f)})
		}
	}
	return parts, nil
}

// share makes a connection between the sentry and the gofer.
func (b *builder) share(s share) (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket pair: %w", err)
	}
	b.shares = append(b.shares, s)
	b.socks = append(b.socks, os.NewFile(uintptr(fds[0]), "gofer"))
	return b.addOwn(os.NewFile(uintptr(fds[1]), "gofer")), nil
}

// mounts describes the mounts below the root.
func (b *builder) mounts() error {
	all, err := sandbox.Mounts(b.r)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Type == "cgroup" || m.Type == "cgroup2" {
			continue // the sentry's own would show nothing of the limits in force
		}
		out, err := b.mount(m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		b.out.Mounts = append(b.out.Mounts, out)
	}
	return nil
}

func (b *builder) mount(m oci.Mount) (mount, error) {
	flags, err := sandbox.ParseMountOptions(m.Options)
	if err != nil {
		return mount{}, err
	}
	has := func(attr uint64) bool { return flags.Set&attr != 0 }
	out := mount{
		Type: m.Type, Target: m.Target, FD: -1, Options: flags.FS, ReadOnly: has(unix.MOUNT_ATTR_RDONLY),
		NoExec: has(unix.MOUNT_ATTR_NOEXEC), NoSUID: has(unix.MOUNT_ATTR_NOSUID), NoDev: has(unix.MOUNT_ATTR_NODEV),
	}
	switch m.Type {
	case "overlay":
		out.Source = m.Source
		out.ReadOnly = out.ReadOnly || m.Upper == ""
		out.NoExec = out.NoExec || slices.ContainsFunc(m.Lower, noExec)
		out.Lower, err = b.lower(m.Lower)
		return out, err
	case "proc", "sysfs", "devpts", "mqueue", "tmpfs":
		return out, nil
	}
	if m.Type != "bind" && m.Type != "rbind" && !flags.IsBind() {
		return mount{}, fmt.Errorf("type %.40q: %w", m.Type, unix.ENODEV)
	}
	out.Type = "bind"
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return mount{}, fmt.Errorf("source: %w", &os.PathError{Op: "stat", Path: m.Source, Err: err})
	}
	out.Kind = uint16(st.Mode & unix.S_IFMT)
	out.NoExec = out.NoExec || noExec(m.Source) // as a bind of the kernel's is
	if out.Content = copyOf(m, out.ReadOnly); out.Content == nil {
		out.FD, err = b.share(share{Path: m.Source, ReadOnly: out.ReadOnly})
	}
	return out, err
}
