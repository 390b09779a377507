package sentry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/pkg/gomaxprocs"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/memutil"
	"gvisor.dev/gvisor/pkg/rand"
	"gvisor.dev/gvisor/pkg/ring0"
	"gvisor.dev/gvisor/pkg/sentry/devices/memdev"
	"gvisor.dev/gvisor/pkg/sentry/devices/ttydev"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/cgroup2fs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/dev"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/devpts"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/devtmpfs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/erofs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/gofer"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/host"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/mqfs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/overlay"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/proc"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/sys"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/tmpfs"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/loader"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/platform/ptrace"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	_ "gvisor.dev/gvisor/pkg/sentry/socket/netlink"       // registers AF_NETLINK sockets
	_ "gvisor.dev/gvisor/pkg/sentry/socket/netlink/route" // and what ip(8) asks
	_ "gvisor.dev/gvisor/pkg/sentry/socket/unix"          // registers AF_UNIX sockets
	_ "gvisor.dev/gvisor/pkg/sentry/syscalls/linux"       // registers the system calls
	stime "gvisor.dev/gvisor/pkg/sentry/time"
	"gvisor.dev/gvisor/pkg/sentry/usage"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/sighandling"

	"den/internal/sandbox"
	"den/internal/sandbox/sentry/filter"
)

// A box is one sandbox of a machine: the one that it was made for, or one that has joined it.
type box struct {
	*machine
	id      string // how the sentry calls it
	ctx     context.Context
	control *control
	spaces

	// Of the request:
	r       *request
	files   descriptors
	lowers  []vfs.VirtualDentry
	upper   vfs.VirtualDentry
	mounts  *vfs.MountNamespace
	made    []string          // mount points made where they stay visible
	pts     vfs.VirtualDentry // where terminals are
	payload *kernel.ThreadGroup
	term    *terminal
	initFD  int // the plan of process 1, or -1
	cgroup  kernel.Cgroup2
	trees   []*vfs.Mount        // those that are the box's own
	common  []vfs.VirtualDentry // directories that are kept
	with    *box                // the one that it joins, while it is made
	init    *kernel.ThreadGroup

	killed killReason // and limits of the request, guarded by the machine's mu
	holds  holds

	// life is read-locked while a program is added, so that none comes after the end.
	life  sync.RWMutex
	ended bool
	execs sync.WaitGroup // programs that were added and have not told how they ended

	finished chan struct{}
}

// sentryMain is the life of a den-sentry.
func sentryMain(platform, network string) error {
	b := newMachine(newControl(fdControl))
	if err := b.prepare(platform, network); err != nil {
		return err
	}
	if err := b.control.tell(&event{Ready: true}); err != nil {
		return err
	}
	c, files, err := b.control.next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil // not needed any more
		}
		return err
	}
	if c.Start == nil {
		return errors.New("the first command is no request")
	}
	b.r, b.files = c.Start, files
	if err := b.start(); err != nil {
		return b.control.tell(&event{Failed: describe(err)})
	}
	if err := b.control.tell(&event{Started: true}); err != nil {
		return err
	}
	go b.finish()
	b.serve()
	b.abandon()
	b.boxes.Wait() // others may still run
	return nil
}

// prepare does everything that does not depend on a request. It ends with the
// sentry's own filter of system calls: nothing of a payload is looked at before that.
func (b *box) prepare(platformName, network string) error {
	quiet()
	p, err := newPlatform(platformName)
	if err != nil {
		return err
	}
	b.cores = runtime.NumCPU()
	b.k = &kernel.Kernel{Platform: p, AllowSUID: true}
	fd, err := memutil.CreateMemFD("den-memory", 0)
	if err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	mf, err := pgalloc.NewMemoryFile(os.NewFile(uintptr(fd), "den-memory"), pgalloc.MemoryFileOpts{})
	if err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	b.k.SetMemoryFile(mf)
	vdso, err := loader.PrepareVDSO(mf)
	if err != nil {
		return fmt.Errorf("vdso: %w", err)
	}
	tk := kernel.NewTimekeeper()
	params := kernel.NewVDSOParamPage(mf, vdso.ParamPage.FileRange())
	tk.SetClocks(stime.NewCalibratedClocks(false), params)
	b.userns = auth.NewRootUserNamespace()
	b.root = auth.NewRootCredentials(b.userns)
	netns, err := b.newNetwork(network, tk)
	if err != nil {
		return err
	}
	err = b.k.Init(kernel.InitKernelArgs{
		FeatureSet: cpuid.HostFeatureSet().Fixed(), Timekeeper: tk, RootUserNamespace: b.userns,
		RootNetworkNamespace: netns, ApplicationCores: uint(b.cores), Vdso: vdso, VdsoParams: params,
		RootUTSNamespace: kernel.NewUTSNamespace("", "", b.userns), RootIPCNamespace: kernel.NewIPCNamespace(b.userns),
		RootPIDNamespace: kernel.NewRootPIDNamespace(b.userns), MaxFDLimit: kernel.MaxFdLimit,
		Cgroup2FSInit: cgroup2fs.NewFilesystem,
	})
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if err := b.register(); err != nil {
		return err
	}
	if err := configureNetwork(netns); err != nil {
		return err
	}
	if err := errors.Join(b.commitOnFault(), copyLittle()); err != nil {
		return err
	}
	if err := preferred(); err != nil {
		return err
	}
	return confine(platformName, network, p.SeccompInfo())
}

// confine loads the sentry's own filter.
func confine(platformName, network string, info platform.SeccompInfo) error {
	name := filter.SystrapOwn
	switch host := network == sandbox.NetworkHost; {
	case platformName == platformPtrace && host:
		name = filter.PtraceHost
	case platformName == platformPtrace:
		name = filter.PtraceOwn
	case host:
		name = filter.SystrapHost
	}
	return filter.Install(name, info.Variables().GetUint64(filter.PriorityVariable))
}

// quiet drops gVisor's log: what a child has to say goes over its socket, or is a panic. Times are in
// UTC: for the local zone a file would be read when the first one is written, which no filter allows.
func quiet() {
	time.Local = time.UTC
	log.SetTarget(silence{})
}

// silence drops what is logged.
type silence struct{}

// Emit implements log.Emitter.
func (silence) Emit(int, log.Level, time.Time, string, ...any) {}

// newPlatform is the way in which the sentry runs code that is not its own.
// Each is named here, so that none is linked that nobody may choose (kvm).
func newPlatform(name string) (platform.Platform, error) {
	cpuid.Initialize()
	ring0.InitDefault()
	if err := errors.Join(rand.Init(), usage.Init()); err != nil {
		return nil, err
	}
	if err := leaveCPUID(); err != nil {
		return nil, err
	}
	gomaxprocs.SetBase(runtime.NumCPU())
	var p platform.Platform
	var err error
	options := platform.Options{ApplicationCores: runtime.NumCPU(), SandboxID: firstID, DisableFastPath: gathers()}
	switch name {
	case platformSystrap:
		var lean *systrap.Systrap
		lean, err = systrap.New(options)
		p = leanPlatform{lean}
	case platformPtrace:
		p, err = ptrace.New()
	default:
		return nil, fmt.Errorf("platform %.40q: unknown", name)
	}
	if err != nil {
		return nil, fmt.Errorf("platform %s: %w", name, err)
	}
	gomaxprocs.SetBase(base())
	return p, nil
}

// base is how many processors the Go runtime has, half of which may wait for what a process does in its
// own address space. Where sentries are gathered each more than needed costs: for a goroutine that may run an idle one wakes a thread.
func base() int {
	if gathers() {
		return 2
	}
	return 2 * runtime.NumCPU()
}

// register makes the file systems and devices known.
func (b *box) register() error {
	v := b.k.VFS()
	user := &vfs.RegisterFilesystemTypeOptions{AllowUserMount: true, AllowUserList: true}
	own := &vfs.RegisterFilesystemTypeOptions{AllowUserList: true}
	for _, f := range []struct {
		name string
		fs   vfs.FilesystemType
		o    *vfs.RegisterFilesystemTypeOptions
	}{
		{devpts.Name, &devpts.FilesystemType{}, user},
		{dev.Name, &dev.FilesystemType{}, &vfs.RegisterFilesystemTypeOptions{}},
		{devtmpfs.Name, &devtmpfs.FilesystemType{}, user},
		{erofs.Name, &erofs.FilesystemType{}, own},
		{gofer.Name, &gofer.FilesystemType{}, own},
		{overlay.Name, &overlay.FilesystemType{}, user},
		{proc.Name, &proc.FilesystemType{}, user},
		{sys.Name, &sys.FilesystemType{}, user},
		{tmpfs.Name, &tmpfs.FilesystemType{}, user},
		{mqfs.Name, &mqfs.FilesystemType{}, user},
		{cgroup2fs.Name, &cgroup2fs.FilesystemType{}, own},
	} {
		if err := v.RegisterFilesystemType(f.name, f.fs, f.o); err != nil {
			return fmt.Errorf("file system %s: %w", f.name, err)
		}
	}
	if err := errors.Join(memdev.Register(v), ttydev.Register(v)); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	b.ctx = &boxContext{b.k.SupervisorContext(), b}
	hostFS, err := host.NewFilesystem(v)
	if err != nil {
		return fmt.Errorf("host file system: %w", err)
	}
	b.k.SetHostMount(v.NewDisconnectedMount(hostFS, nil, &vfs.MountOptions{}))
	hostFS.DecRef(b.ctx)
	return sighandling.IgnoreChildStop()
}

// start makes the request's file systems and its first process, and lets it run.
func (b *box) start() error {
	if err := b.make(); err != nil {
		return err
	}
	if err := b.enforce(b.r.Filter); err != nil {
		return err
	}
	pace()
	if err := b.k.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	b.watchOnce()
	return nil
}

// make makes the request's file systems and its first process.
func (b *box) make() (err error) {
	b.k.RegisterContainerName(b.id, b.id)
	b.k.RegisterContainerName(b.unfilteredID(), b.id)
	if err := b.makeSpaces(); err != nil {
		return err
	}
	if b.initFD, err = b.files.take(b.r.InitFD); err != nil {
		return err
	}
	for i := range b.r.Devices {
		if err := b.plug(&b.r.Devices[i], b.files); err != nil {
			return err
		}
	}
	if err := b.fileSystem(); err != nil {
		return err
	}
	return b.process()
}

// serve obeys den until it is gone, or has no more use for this sandbox.
func (b *box) serve() {
	for {
		c, files, err := b.control.next()
		switch {
		case err != nil:
			return
		case c.Call && len(files) == 1:
			go b.answer(newControl(files[0]))
			continue
		case c.Freeze:
			b.hold(holdFreeze)
		case c.Thaw:
			b.letGo(holdFreeze)
		case c.Hold:
			b.quota.hold(b.k)
		case c.LetGo:
			b.quota.letGo(b.k)
		case c.Signal != 0:
			b.signal(unix.Signal(c.Signal))
		case c.Resize != nil && b.term != nil:
			b.term.resize(b, *c.Resize)
		}
		files.close()
	}
}

// descriptors are those that came with a command.
type descriptors []int

// take gives one of them away.
func (d descriptors) take(index int) (int, error) {
	if index < 0 || index >= len(d) || d[index] < 0 {
		return -1, fmt.Errorf("descriptor %d is not one of the %d that came", index, len(d))
	}
	fd := d[index]
	d[index] = -1
	return fd, nil
}

// close closes those that nobody took.
func (d descriptors) close() {
	for i, fd := range d {
		if fd >= 0 {
			_ = unix.Close(fd)
			d[i] = -1
		}
	}
}

// fd takes a descriptor of the request.
func (b *box) fd(index int) (int, error) { return b.files.take(index) }
