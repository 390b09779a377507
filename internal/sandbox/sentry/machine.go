package sentry

import (
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/cgroup2fs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/nsfs"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/kernel/ipc"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// firstID is how the sentry calls the box that it was made for.
const firstID = "den"

// A machine is the sentry: a kernel in user space with one network stack, and the boxes that
// share it.
type machine struct {
	k      *kernel.Kernel
	root   *auth.Credentials // who makes mounts
	userns *auth.UserNamespace
	cores  int

	netMu  sync.Mutex
	cables map[string]cable // of the devices that den plugged in

	first    *box // whose limits of memory and processors are the machine's
	quota    quotaHold
	watching sync.Once
	boxes    sync.WaitGroup // those that have joined

	mu     sync.Mutex
	serial int
	living map[*box]bool
	peak   uint64 // of memory, as far as somebody looked
}

// newMachine is a machine and its first box, which den talks to over c.
func newMachine(c *control) *box {
	m := &machine{living: map[*box]bool{}}
	m.first = m.newBox(c)
	return m.first
}

// newBox is one more box of the machine.
func (m *machine) newBox(c *control) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := &box{machine: m, id: firstID, control: c, initFD: -1, finished: make(chan struct{})}
	if m.serial > 0 {
		b.id += "-" + strconv.Itoa(m.serial)
	}
	m.serial++
	m.living[b] = true
	return b
}

// limits are those in force for all that runs in the machine, but for processes.
func (m *machine) limits() limitSizes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.first.r.limitSizes
}

// killEverybody ends all boxes.
func (m *machine) killEverybody(why killReason) {
	m.mu.Lock()
	var all []*box
	for b := range m.living {
		b.killed = why
		all = append(all, b)
	}
	m.mu.Unlock()
	m.k.Kill(linux.WaitStatusTerminationSignal(linux.SIGKILL))
	for _, b := range all {
		b.release()
	}
}

// leave takes a box that has ended out of the machine. While others live, it gives back what it had.
func (b *box) leave() {
	b.mu.Lock()
	delete(b.living, b)
	others := len(b.living) > 0
	b.mu.Unlock()
	if others { // or the process ends
		b.free()
	}
	_ = b.control.tell(&event{Gone: true}) // nobody may be there any more
}

// spaces are the namespaces of a box.
type spaces struct {
	pids *kernel.PIDNamespace
	uts  *kernel.UTSNamespace
	ipc  *kernel.IPCNamespace
}

// makeSpaces makes the namespaces of a box, or takes those of the one that it joins. Process ids are below
// those of the machine: when the first process of a namespace ends, all in it are killed.
func (b *box) makeSpaces() error {
	ctx := b.ctx
	uts := kernel.NewUTSNamespace(b.r.Hostname, b.r.Domainname, b.userns)
	inode, err := b.inode(uts)
	if err != nil {
		return err
	}
	uts.SetInode(inode)
	b.uts = uts
	if b.r.Share.IPC && b.with != nil {
		b.ipc = b.with.ipc
		b.ipc.IncRef()
	} else {
		own := kernel.NewIPCNamespace(b.userns)
		if inode, err = b.inode(own); err != nil {
			return err
		}
		own.SetInode(inode)
		if err := own.InitPosixQueues(ctx, b.k.VFS(), b.root); err != nil {
			return fmt.Errorf("ipc namespace: %w", err)
		}
		b.ipc = own
	}
	if b.r.Share.PIDs && b.with != nil {
		b.pids = b.with.pids
	} else {
		b.pids = b.k.RootPIDNamespace().NewChild(ctx, b.k, b.userns)
	}
	return nil
}

// inode is what counts the references of a namespace.
func (b *box) inode(ns vfs.Namespace) (*nsfs.Inode, error) {
	i, ok := b.k.GetNamespaceInode(b.ctx, ns).(*nsfs.Inode)
	if !ok {
		return nil, fmt.Errorf("%s namespace: it has no inode", ns.Type())
	}
	return i, nil
}

// boxContext is the supervisor's, in the namespaces of a box.
type boxContext struct {
	context.Context
	b *box
}

// Value implements context.Context. Who asks for what has references gets one.
func (c *boxContext) Value(key any) any {
	b := c.b
	switch {
	case key == kernel.CtxPIDNamespace && b.pids != nil:
		return b.pids
	case key == kernel.CtxUTSNamespace && b.uts != nil:
		b.uts.IncRef()
		return b.uts
	case key == ipc.CtxIPCNamespace && b.ipc != nil:
		b.ipc.IncRef()
		return b.ipc
	case key == vfs.CtxMountNamespace: // the supervisor's is that of the first box, whose processes may be gone
		if b.mounts == nil {
			return nil
		}
		b.mounts.IncRef()
		return b.mounts
	case key == vfs.CtxRoot:
		if b.mounts == nil {
			return vfs.VirtualDentry{}
		}
		return b.mounts.Root(c)
	}
	return c.Context.Value(key)
}

// tasks are the threads of a box, whatever namespaces they have made for themselves.
func (b *box) tasks() (all []*kernel.Task) {
	for _, t := range b.k.RootPIDNamespace().Tasks() {
		if b.owns(t.ContainerID()) {
			all = append(all, t)
		}
	}
	return all
}

// groups are the processes of a box.
func (b *box) groups() (all []*kernel.ThreadGroup) {
	for _, tg := range b.k.RootPIDNamespace().ThreadGroups() {
		if leader := tg.Leader(); leader != nil && b.owns(leader.ContainerID()) {
			all = append(all, tg)
		}
	}
	return all
}

// killAll returns when no process of the box runs. One that was made while the others were killed is killed then.
func (b *box) killAll() {
	seen := map[*kernel.ThreadGroup]bool{}
	for more := true; more; {
		more = false
		var all []*kernel.ThreadGroup
		for _, tg := range b.groups() {
			if !seen[tg] {
				b.kill(tg)
				all = append(all, tg)
			}
		}
		for _, tg := range all {
			tg.WaitExited()
			seen[tg], more = true, true
		}
	}
}

// free gives back what a box had, while the machine goes on. Nothing runs in it any more.
func (b *box) free() {
	ctx := b.ctx
	if b == b.first {
		b.quota.end(b.k)
		b.unplugAll()
	}
	if b.cgroup != nil {
		b.removeCgroup()
	}
	if b.mounts != nil {
		m := b.mounts
		b.mounts = nil
		m.DecRef(ctx)
	}
	if b.pts.Ok() {
		b.pts.DecRef(ctx)
	}
	for _, d := range b.common {
		d.DecRef(ctx)
	}
	for i := len(b.trees) - 1; i >= 0; i-- { // what was mounted last is mounted on what was there
		b.trees[i].DecRef(ctx)
	}
	if b.ipc != nil {
		b.ipc.DecRef(ctx)
	}
	if b.uts != nil {
		b.uts.DecRef(ctx)
	}
	b.common, b.trees, b.ipc, b.uts = nil, nil, nil, nil
	if b.initFD >= 0 {
		_ = unix.Close(b.initFD)
	}
	b.files.close() // leases among them
}

// removeCgroup removes the box's. A process that has ended may be in it for a moment longer.
func (b *box) removeCgroup() {
	m, err := b.k.VFS().MountDisconnected(b.ctx, b.root, cgroup2fs.Name, cgroup2fs.Name, &vfs.MountOptions{
		GetFilesystemOptions: vfs.GetFilesystemOptions{InternalMount: true},
	})
	if err != nil {
		return
	}
	defer m.DecRef(b.ctx)
	_ = b.k.VFS().RmdirAt(b.ctx, b.root, at(vfs.MakeVirtualDentry(m, m.Root()), b.id))
}
