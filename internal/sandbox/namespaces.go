package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// Options of the namespaces executor.
type Options struct {
	// Choice is what Choose picked.
	Choice Choice
	// OldOverlay mounts overlays by mount(2), as kernels before 6.5 need it.
	OldOverlay bool
}

// Namespaces runs sandboxes in kernel namespaces, for the rungs privileged and
// userns. It may be used by several goroutines.
type Namespaces struct {
	o             Options
	chroot        bool // for Chroot
	status        sys.Status
	uids, gids    []sys.IDMap
	lowerdirPlus  func() bool
	cgroupVersion func() int

	mu      sync.Mutex
	filters map[[sha256.Size]byte][]byte
}

// NewNamespaces returns the executor for kernel namespaces.
func NewNamespaces(o Options) (*Namespaces, error) {
	st, err := sys.SelfStatus()
	if err != nil {
		return nil, err
	}
	n := &Namespaces{o: o, status: st, filters: map[[sha256.Size]byte][]byte{}}
	if n.uids, err = sys.SelfIDMap("uid"); err != nil {
		return nil, err
	}
	if n.gids, err = sys.SelfIDMap("gid"); err != nil {
		return nil, err
	}
	n.lowerdirPlus = sync.OnceValue(func() bool { return !o.OldOverlay && newOverlayAPI() })
	n.cgroupVersion = sync.OnceValue(cgroupVersion)
	return n, nil
}

// Name is the rung's.
func (n *Namespaces) Name() string { return string(n.o.Choice.Rung) }

// newOverlayAPI reports whether overlay understands the mount API by itself
// (Linux 6.5): then it refuses an unknown parameter when it is set, and before only when
// it mounts.
func newOverlayAPI() bool {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return true // the mount itself will say what is wrong
	}
	defer unix.Close(fd)
	return unix.FsconfigSetString(fd, "den-no-such-parameter", "1") != nil
}

// Start runs r.
func (n *Namespaces) Start(ctx context.Context, r *Request) (Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Linux == nil {
		return nil, fmt.Errorf("sandbox %s: the specification has no process or no linux part", r.ID)
	}
	if r.Detach != "" {
		if err := checkDetach(r); err != nil {
			return nil, err
		}
	}
	filter, err := n.filter(r.Spec.Linux.Seccomp)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	r, others, err := joinOthers(r)
	if err != nil {
		return nil, err
	}
	defer closeAll(others)
	return n.launch(ctx, r, &running{id: r.ID, n: n, stubs: &stubs{root: r.Root}, seccomp: r.Spec.Linux.Seccomp, filter: filter})
}

// canFilter reports whether the kernel lets den load a filter for p. On the rung chroot
// den may lack CAP_SYS_ADMIN, and nobody else loads one that setuid programs would inherit.
func (n *Namespaces) canFilter(p *specs.Process) bool {
	return !n.chroot || n.status.Effective.Has(unix.CAP_SYS_ADMIN) || p.NoNewPrivileges
}

// launch starts what s is prepared for; whatever comes of it, s.undo is called in the end.
func (n *Namespaces) launch(ctx context.Context, r *Request, s *running) (_ Sandbox, err error) {
	if s.sharesPids(r) {
		// The payload sees den's entry in proc.
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	streams, err := NewStreams(r)
	if err == nil && n.chroot && r.Spec.Process.Terminal {
		s.master, err = streams.pty(r.Spec.Process)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox %s: %w", r.ID, err), s.takeBack())
	}
	s.streams, s.done = streams, make(chan struct{})
	if s.parent == nil {
		if c := newCgroup(r, n.cgroupVersion()); c != nil {
			s.cgroup.Store(c)
			s.enter = c.enter
		}
	}
	if err := n.start(ctx, r, s); err != nil {
		streams.CloseChild()
		streams.CloseOwn()
		s.cgroup.Load().remove()
		s.detached.discard()
		if s.master != nil {
			s.master.Close()
		}
		return nil, errors.Join(Explain(n.o.Choice.Security, fmt.Errorf("sandbox %s: %w", r.ID, err)), s.takeBack())
	}
	streams.CloseChild()
	err = Explain(n.o.Choice.Security, s.follow(r))
	if err == nil {
		err = errors.Join(ctx.Err(), failpoint.Hit("sandbox.start.after-exec"))
	}
	if err == nil && s.detached != nil {
		s.stop()
		err = s.detached.release(s.master)
	}
	if err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	s.run()
	return s, nil
}

// start plans and starts the holder.
func (n *Namespaces) start(ctx context.Context, r *Request, s *running) error {
	if r.Detach != "" {
		var err error
		if s.detached, err = newDetached(r, s); err != nil {
			return err
		}
		s.stubs.note = s.detached.note
	}
	leases := Leases(r)
	o := programOptions{
		leases: len(leases), cgroup: s.enter != nil, cgroupVersion: n.cgroupVersion(), sharePids: s.sharesPids(r), chroot: n.chroot,
		join: s.join, detach: s.detached != nil, caps: n.status.Permitted & n.status.Bounding, bounding: n.status.Bounding,
		lowerdirPlus: n.lowerdirPlus(), ownStdio: s.streams.Own, rlimit: rlimit,
		uidMapped: func(id uint32) bool { return sys.MapsID(n.uids, id) },
		gidMapped: func(id uint32) bool { return sys.MapsID(n.gids, id) },
	}
	if r.Spec.Linux.Seccomp != nil {
		o.filter = s.filter
	}
	plan, name := newProgram, "den-holder"
	if s.join != nil {
		plan, name = newExecProgram, "den-exec"
	}
	p, err := plan(r, o)
	if err != nil {
		return err
	}
	s.program = p
	pipes, err := newPipes(s.detached)
	if err != nil {
		return err
	}
	defer pipes.closeChild()
	initStatus := pipes.status
	if s.detached != nil {
		initStatus = s.detached.records
	}
	files := append(s.streams.Child[:], pipes.progress, pipes.sync, pipes.send, initStatus, pipes.control, pipes.status)
	for i, f := range files {
		// No gaps: the holder's pidfd would fall into one and be closed with
		// the payload's descriptors.
		if f == nil || i == fdInit && !r.Init {
			files[i] = pipes.sync
		}
	}
	files = append(files, leases...)
	if o.sharePids {
		exe, err := os.Open("/proc/self/exe")
		if err != nil {
			pipes.closeOwn()
			return err
		}
		defer exe.Close()
		files = append(files, exe)
	}
	if s.detached != nil {
		files = append(files, s.detached.files()...)
		defer s.detached.closeHolders()
		if err := failpoint.Hit("sandbox.detach.before-holder"); err != nil {
			pipes.closeOwn()
			return err
		}
	}
	holder, err := p.Start(name, files)
	if err != nil {
		pipes.closeOwn()
		return err
	}
	s.started(holder)
	if s.detached != nil {
		if err := failpoint.Hit("sandbox.detach.after-holder"); err != nil {
			pipes.closeOwn()
			return err
		}
	}
	s.pipes = pipes
	s.stop = context.AfterFunc(ctx, func() { _ = s.Signal(unix.SIGKILL) })
	return nil
}

// maxFilters bounds the compiled profiles that are kept: anybody can ask for a new one.
const maxFilters = 64

// filter compiles a profile, once for each distinct one as long as they are few.
func (n *Namespaces) filter(p *specs.LinuxSeccomp) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	key := sha256.Sum256(b)
	n.mu.Lock()
	f, ok := n.filters[key]
	n.mu.Unlock()
	if ok {
		return f, nil
	}
	prog, err := CompileSeccomp(p)
	if err != nil {
		return nil, err
	}
	f = make([]byte, 0, 8*len(prog))
	for _, i := range prog { // struct sock_filter
		f = binary.LittleEndian.AppendUint16(f, i.Op)
		f = append(f, i.Jt, i.Jf)
		f = binary.LittleEndian.AppendUint32(f, i.K)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.filters) >= maxFilters {
		clear(n.filters)
	}
	n.filters[key] = f
	return f, nil
}

func rlimit(resource int) (unix.Rlimit, error) {
	var l unix.Rlimit
	err := unix.Prlimit(0, resource, nil, &l)
	return l, err
}

// sharesPids reports whether what r starts is in den's pid namespace: because there is no
// other, or because it is wanted so (--pid host), or because the sandbox that it joins is.
func (s *running) sharesPids(r *Request) bool {
	switch {
	case s.n.o.Choice.SharePids:
		return true
	case s.join != nil:
		return s.join.namespaces&unix.CLONE_NEWPID == 0
	}
	return !slices.ContainsFunc(r.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
}

// SharesPids reports whether sandboxes have no pid namespace of their own.
func (n *Namespaces) SharesPids() bool { return n.o.Choice.SharePids }
