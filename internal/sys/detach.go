package sys

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:linkname detachBeforeFork syscall.runtime_BeforeFork
func detachBeforeFork()

//go:linkname detachAfterFork syscall.runtime_AfterFork
func detachAfterFork()

//go:linkname detachAfterForkInChild syscall.runtime_AfterForkInChild
func detachAfterForkInChild()

// A Detached is a list of system calls that a process of its own makes, in a
// session of its own, while the process that started it goes on or ends.
// Nobody waits for it and nobody hears of its errors: it is for work that is
// done again by somebody else when it is not done.
//
// It is a fork without exec, so it costs no start-up and depends on no file,
// but it keeps the pages of its parent's memory that the parent changes.
type Detached struct {
	calls []rawCall
	head  int   // of calls, that are made before Start returns
	keep  []any // what the arguments point at
}

// A rawCall is one system call. The list ends at the first that fails, unless
// it mayFail.
type rawCall struct {
	nr      uintptr
	a       [5]uintptr
	mayFail bool
}

// NewDetached begins a list. The process will hold files and nothing else.
func NewDetached(files ...*os.File) *Detached {
	d := &Detached{}
	d.try(unix.SYS_SETSID)
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	// Not one more: a lease, or a pipe that somebody reads to its end, would
	// live on in here.
	slices.Sort(fds)
	next := uintptr(0)
	for _, fd := range fds {
		if fd > next {
			d.do(unix.SYS_CLOSE_RANGE, next, fd-1)
		}
		next = fd + 1
	}
	d.do(unix.SYS_CLOSE_RANGE, next, math.MaxUint32)
	d.try(unix.SYS_CHDIR, d.str("/"))
	d.head = len(d.calls)
	return d
}

// Flock waits for a lock on f, or removes it.
func (d *Detached) Flock(f *os.File, how int) { d.do(unix.SYS_FLOCK, f.Fd(), uintptr(how)) }

// Syncfs writes f's file system to disk.
func (d *Detached) Syncfs(f *os.File) { d.do(unix.SYS_SYNCFS, f.Fd()) }

// fitrim is FITRIM of linux/fs.h.
const fitrim = 0xc0185879

// Trim tells the device below f's file system which blocks are unused (FITRIM).
func (d *Detached) Trim(f *os.File) {
	all := &[3]uint64{0, math.MaxUint64, 0} // start, length, shortest run
	d.keep = append(d.keep, all)
	d.do(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(all)))
}

// Fsync writes f to disk, a directory with the names of its members.
func (d *Detached) Fsync(f *os.File) { d.do(unix.SYS_FSYNC, f.Fd()) }

// Rename renames a member of dir.
func (d *Detached) Rename(dir *os.File, from, to string) {
	d.do(unix.SYS_RENAMEAT2, dir.Fd(), d.str(from), dir.Fd(), d.str(to), 0)
}

// TryRename is Rename that goes on when there is nothing to rename.
func (d *Detached) TryRename(dir *os.File, from, to string) {
	d.try(unix.SYS_RENAMEAT2, dir.Fd(), d.str(from), dir.Fd(), d.str(to), 0)
}

// TryMkdir makes a directory in dir.
func (d *Detached) TryMkdir(dir *os.File, name string) {
	d.try(unix.SYS_MKDIRAT, dir.Fd(), d.str(name), 0o755)
}

// TryUnlink removes a file beneath dir, TryRmdir an empty directory.
func (d *Detached) TryUnlink(dir *os.File, name string) {
	d.try(unix.SYS_UNLINKAT, dir.Fd(), d.str(name), 0)
}

// TryRmdir removes an empty directory beneath dir.
func (d *Detached) TryRmdir(dir *os.File, name string) {
	d.try(unix.SYS_UNLINKAT, dir.Fd(), d.str(name), unix.AT_REMOVEDIR)
}

func (d *Detached) do(nr uintptr, a ...uintptr) {
	c := rawCall{nr: nr}
	copy(c.a[:], a)
	d.calls = append(d.calls, c)
}

func (d *Detached) try(nr uintptr, a ...uintptr) {
	d.do(nr, a...)
	d.calls[len(d.calls)-1].mayFail = true
}

func (d *Detached) str(s string) uintptr {
	b := append([]byte(s), 0)
	d.keep = append(d.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// Start starts the process. When it returns, the process holds no file that it
// was not given, and those may be closed here.
func (d *Detached) Start() error {
	syscall.ForkLock.Lock()
	detachBeforeFork()
	pid, errno := forkDetached(unsafe.Pointer(&d.calls[0]), d.head, len(d.calls))
	detachAfterFork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(d)
	if errno != 0 {
		return fmt.Errorf("detach: fork: %w", errno)
	}
	// The child only forks once more, so that the one that works is init's.
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(int(pid), &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("detach: wait: %w", err)
		}
		break
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		return fmt.Errorf("detach: fork: child ended with %#x", int(status))
	}
	return nil
}

// forkDetached forks, makes the first head calls in the child, forks again and
// makes the others, up to n, in the grandchild. Nothing in the children may
// allocate, lock or grow the stack: the runtime's other threads are gone there.
//
//go:norace
//go:noinline
//go:nosplit
func forkDetached(calls unsafe.Pointer, head, n int) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	detachAfterForkInChild()
	errno = walkCalls(calls, 0, head)
	if errno == 0 {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	}
	if pid == 0 && errno == 0 {
		walkCalls(calls, head, n)
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// walkCalls makes the calls from up to to.
//
//go:norace
//go:noinline
//go:nosplit
func walkCalls(calls unsafe.Pointer, from, to int) syscall.Errno {
	for i := from; i < to; i++ {
		c := (*rawCall)(unsafe.Add(calls, uintptr(i)*unsafe.Sizeof(rawCall{})))
		_, _, e := syscall.RawSyscall6(c.nr, c.a[0], c.a[1], c.a[2], c.a[3], c.a[4], 0)
		if e != 0 && !c.mayFail {
			return e
		}
	}
	return 0
}
