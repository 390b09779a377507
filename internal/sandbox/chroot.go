package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Chroot runs trusted steps with next to no isolation: their root directory is another,
// and they have the user, capabilities and limits of the request. Processes, network and
// names are the outer container's; there is no /proc and no /sys. It needs CAP_SYS_CHROOT
// and a root file system that is a directory of its own, as the copy driver makes it.
//
// Nothing can be mounted. What the request mounts is copied into the root before the
// payload starts, in the place of what is there; what may be written is copied back, and all
// is as it was in the root, before Wait returns. Where den is killed meanwhile, it is not.
type Chroot struct {
	n       *Namespaces
	devices bool
}

// NewChroot returns the executor for o.Choice of the rung chroot.
func NewChroot(o Options) (*Chroot, error) {
	o.Choice.SharePids = true
	n, err := NewNamespaces(o)
	if err != nil {
		return nil, err
	}
	n.chroot = true
	return &Chroot{n, o.Choice.Devices}, nil
}

// Name is the rung's.
func (*Chroot) Name() string { return string(RungChroot) }

// SharesPids reports that sandboxes have no pid namespace of their own.
func (*Chroot) SharesPids() bool { return true }

// Start runs r. Errors are of class errdefs.ErrNotImplemented where r wants what this
// rung cannot do.
func (c *Chroot) Start(ctx context.Context, r *Request) (_ Sandbox, err error) {
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Linux == nil {
		return nil, fmt.Errorf("sandbox %s: the specification has no process or no linux part", r.ID)
	}
	if err := c.check(r); err != nil {
		return nil, fmt.Errorf("sandbox %s: rung chroot: %w", r.ID, err)
	}
	own := *r
	spec := *r.Spec
	linux := *r.Spec.Linux
	own.Spec, spec.Linux = &spec, &linux
	s := &running{id: r.ID, stubs: &stubs{root: r.Root}, n: c.n, seccomp: linux.Seccomp}
	if s.filter, err = c.n.filter(linux.Seccomp); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	if !c.n.canFilter(spec.Process) {
		linux.Seccomp = nil // the outer container's stays in force
	}
	placed, err := place(ctx, &own, s.stubs, c.devices)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	s.undo = placed.undo
	return c.n.launch(ctx, &own, s)
}

// check refuses what cannot be done without mounts and namespaces.
func (c *Chroot) check(r *Request) error {
	cannot := func(what string) error {
		return fmt.Errorf("%s: %w: the rungs privileged, userns and sentry can (--isolation)", what, errdefs.ErrNotImplemented)
	}
	o, err := ParseMountOptions(r.Root.Options)
	if err != nil {
		return err
	}
	switch {
	case r.Root.Type != "bind":
		return cannot("a root of type " + r.Root.Type)
	case o.Set&unix.MOUNT_ATTR_RDONLY != 0, r.Spec.Root != nil && r.Spec.Root.Readonly:
		return cannot("a read-only root")
	case r.Detach != "":
		return cannot("a sandbox that outlives den")
	case r.NetworkOf != nil, r.IPCOf != nil, r.PIDsOf != nil:
		return cannot("namespaces of another sandbox")
	case r.Network == NetworkNone:
		return cannot("network none")
	case len(r.Spec.Linux.Sysctl) > 0:
		return cannot("sysctls")
	}
	for _, n := range r.Spec.Linux.Namespaces {
		if n.Path != "" && n.Type != specs.MountNamespace {
			return cannot(fmt.Sprintf("a %s namespace", n.Type))
		}
	}
	return nil
}

// changeRoot is what fileSystem is on other rungs.
func (p *program) changeRoot() {
	const note = "change the root directory"
	root := p.Cell(0)
	p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str(p.r.Root.Source), sys.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).To(root).Note(note)
	p.Do(unix.SYS_FCHDIR, root.Value()).Note(note)
	p.Do(unix.SYS_CHROOT, p.Str(".")).Note(note)
	p.Do(unix.SYS_CHDIR, p.Str("/")).Note(note)
	p.send(root, showRoot)
	p.Close(root)
	if p.spec.Process.Terminal {
		p.Do(unix.SYS_IOCTL, sys.Int(0), sys.Int(unix.TIOCSCTTY), sys.Int(0)).Note("terminal")
	}
}

// pty makes a terminal of the outer container's, whose one end is the payload's streams
// and whose other end is returned.
func (s *Streams) pty(p *specs.Process) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("terminal: %w", err)
		}
	}()
	// Not by os.OpenFile, which would leave it blocking.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master := os.NewFile(uintptr(fd), terminalName)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, errors.Join(err, master.Close())
	}
	// By the master's own descriptor: in a container /dev/pts may be another's.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, errors.Join(errno, master.Close())
	}
	slave := os.NewFile(peer, terminalName)
	if c := p.ConsoleSize; c != nil {
		_ = unix.IoctlSetWinsize(int(peer), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(c.Height), Col: uint16(c.Width)})
	}
	if p.User.UID != 0 {
		_ = slave.Chown(int(p.User.UID), -1)
	}
	s.Child = [3]*os.File{slave, slave, slave}
	s.close = append(s.close, slave)
	return master, nil
}
