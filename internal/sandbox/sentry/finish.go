package sentry

import (
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/host"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/vfs"

	"den/internal/sys"
)

// finish waits for the payload, ends what it left behind, and sends what it changed.
func (b *box) finish() {
	defer close(b.finished)
	defer b.leave()
	b.payload.WaitExited()
	status := uint32(b.payload.ExitStatus())
	b.life.Lock()
	b.ended = true
	b.life.Unlock()
	b.release()
	b.killAll()
	if b.term != nil {
		b.term.finish()
	}
	b.awaitExecs()
	if len(b.made) > 0 {
		b.removeStubs()
	}
	b.mu.Lock()
	killed := b.killed
	b.mu.Unlock()
	if err := b.control.tell(&event{Exit: &exit{Status: status, Killed: killed}}); err != nil {
		return
	}
	if b.r.ExportFD < 0 {
		return
	}
	e := &export{}
	if err := b.exportTo(b.r.ExportFD); err != nil {
		e.Err = err.Error()
	}
	_ = b.control.tell(&event{Export: e})
}

// exportTo sends the layer to a descriptor of the request.
func (b *box) exportTo(index int) error {
	fd, err := b.fd(index)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "layer")
	defer f.Close()
	return b.exportLayer(f)
}

// removeStubs takes the mounts away and then the mount points that den made.
func (b *box) removeStubs() {
	ctx := b.ctx
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	for i := len(b.r.Mounts) - 1; i >= 0; i-- {
		_ = b.k.VFS().UmountAt(ctx, b.root, follow(root, b.r.Mounts[i].Target), &vfs.UmountOptions{Flags: linux.MNT_DETACH})
	}
	_ = b.removeMade(root) // what stays is the payload's
}

// signal sends a signal to the payload.
func (b *box) signal(sig unix.Signal) {
	// It may be gone; that is told elsewhere.
	_ = b.k.SendExternalSignalThreadGroup(b.payload, &linux.SignalInfo{Signo: int32(sig)})
	if sig == unix.SIGKILL {
		b.release()
	}
}

// initPlan is process 1 where the request wants one: it reaps, and does nothing else.
// den's signals go to the payload directly.
func initPlan() *sys.Plan {
	p := sys.NewPlan()
	loop := p.Label()
	all := p.Words(sys.Int(^uint64(0)))
	p.Do(unix.SYS_RT_SIGPROCMASK, sys.Int(unix.SIG_SETMASK), all, sys.Int(0), sys.Int(8)).MayFail()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_DUMPABLE), sys.Int(0)).MayFail()
	p.Mark(loop)
	p.Do(unix.SYS_WAIT4, sys.Int(-1), sys.Int(0), sys.Int(unix.WNOHANG|unix.WALL), sys.Int(0)).MayFail().Pos(loop)
	p.Do(unix.SYS_RT_SIGTIMEDWAIT, all, sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Goto(loop)
	return p
}

// initFile opens the plan for the sentry to execute.
func (b *box) initFile() (*vfs.FileDescription, error) {
	fd, err := unix.Dup(b.initFD)
	if err != nil {
		return nil, err
	}
	return host.NewFD(b.ctx, b.k.HostMount(), fd, &host.NewFDOptions{VirtualOwner: true})
}

// startInit makes process 1.
func (b *box) startInit() (err error) {
	b.init, err = b.idle("den-init", b.cgroup)
	return err
}

// idle makes a process from the plan that came with the request, and does not start it.
func (b *box) idle(name string, cgroup kernel.Cgroup2) (*kernel.ThreadGroup, error) {
	args, err := b.processArgs(&program{Args: []string{name}, Cwd: "/", Umask: 0o022, NoNewPrivs: true}, nil, auth.NewRootCredentials(b.userns))
	if err != nil {
		return nil, err
	}
	args.InitialCgroupV2, args.ContainerID = cgroup, b.unfilteredID()
	ctx := args.NewContext(b.k)
	defer args.FDTable.DecRef(ctx)
	if args.File, err = b.initFile(); err != nil {
		b.mounts.DecRef(ctx)
		return nil, err
	}
	defer args.File.DecRef(ctx)
	tg, _, err := b.k.CreateProcess(*args)
	if err != nil {
		return nil, err
	}
	tg.Leader().SetName(name) // before anybody looks
	return tg, nil
}
