package sentry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/usermem"
	"gvisor.dev/gvisor/pkg/waiter"
)

// terminal is a pty of the sentry: its line discipline, job control and ^C are
// the sentry's own, and the payload's is seen as /dev/pts/0. What is typed and
// printed goes through a socket from and to den.
type terminal struct {
	number uint32
	master *vfs.FileDescription
	socket *os.File
	fd     int // the socket's
	copies sync.WaitGroup
	ended  chan struct{} // the program is gone

	mu     sync.Mutex
	closed bool // the master is
}

// ttyGroup is the group tty of every distribution, as Docker has it.
const ttyGroup = 5

// errNoTerminals is why a sandbox whose /dev has no pts cannot have a terminal.
var errNoTerminals = errors.New("no devpts is mounted in the sandbox")

// newTerminal makes a terminal the controlling one of leader, and its standard streams. What
// a payload mounts over /dev/pts makes no difference.
func (b *box) newTerminal(leader *kernel.Task, table *kernel.FDTable, p *program, files descriptors) (_ *terminal, err error) {
	v := b.k.VFS()
	var ctx context.Context = leader
	n, err := files.take(p.TerminalFD)
	if err != nil {
		return nil, err
	}
	t := &terminal{socket: os.NewFile(uintptr(n), "terminal"), fd: n, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			t.socket.Close()
		}
	}()
	if !b.pts.Ok() {
		return nil, errNoTerminals
	}
	if t.master, err = v.OpenAt(ctx, b.root, at(b.pts, "ptmx"), &vfs.OpenOptions{Flags: linux.O_RDWR | linux.O_NOCTTY}); err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: asErrno(err)}
	}
	defer func() {
		if err != nil {
			t.master.DecRef(b.ctx)
		}
	}()
	if err := t.findNumber(leader); err != nil {
		return nil, err
	}
	err = v.SetStatAt(ctx, b.root, at(b.pts, t.name()), &vfs.SetStatOptions{Stat: linux.Statx{
		Mask: linux.STATX_UID | linux.STATX_GID | linux.STATX_MODE, UID: p.UID, GID: ttyGroup, Mode: 0o620,
	}})
	if err != nil {
		return nil, &os.PathError{Op: "chown", Path: t.path(), Err: asErrno(err)}
	}
	// A session leader without a terminal that opens one has it from then on.
	f, err := v.OpenAt(ctx, b.root, at(b.pts, t.name()), &vfs.OpenOptions{Flags: linux.O_RDWR})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: t.path(), Err: asErrno(err)}
	}
	defer f.DecRef(ctx)
	for i := range int32(3) {
		if _, err := table.NewFDAt(ctx, i, f, kernel.FDFlags{}); err != nil {
			return nil, fmt.Errorf("standard streams: %w", asErrno(err))
		}
	}
	if err := t.setSize(leader, *p.Terminal); err != nil {
		return nil, err
	}
	t.copies.Go(func() { t.output(b.ctx) })
	go func() {
		t.input(b.ctx) // until den closes the socket, or nothing more is printed
		t.copies.Wait()
		t.close(b.ctx)
	}()
	return t, nil
}

// name is the terminal's below /dev/pts.
func (t *terminal) name() string { return strconv.FormatUint(uint64(t.number), 10) }

func (t *terminal) path() string { return "/dev/pts/" + t.name() }

// console shows the payload's terminal as /dev/console, too.
func (b *box) console(t *terminal) error {
	v := b.k.VFS()
	ctx := b.ctx
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	d, err := v.GetDentryAt(ctx, b.root, at(b.pts, t.name()), &vfs.GetDentryOptions{})
	if err != nil {
		return &os.PathError{Op: "find", Path: t.path(), Err: asErrno(err)}
	}
	defer d.DecRef(ctx)
	const console = "/dev/console"
	err = v.MknodAt(ctx, b.root, at(root, console), &vfs.MknodOptions{Mode: linux.S_IFREG | 0o600})
	if err != nil && errnoOf(err) != unix.EEXIST {
		return &os.PathError{Op: "create", Path: console, Err: asErrno(err)}
	}
	m := b.own(v.NewDisconnectedMount(d.Mount().Filesystem(), d.Dentry(), &vfs.MountOptions{}))
	if err := v.ConnectMountAt(ctx, b.root, m, at(root, console)); err != nil {
		return &os.PathError{Op: "mount", Path: console, Err: asErrno(err)}
	}
	return nil
}

// ioctl does one to the master. It takes its argument from the memory of a task
// that does not run: a page is mapped for it and unmapped again.
func (t *terminal) ioctl(task *kernel.Task, request uintptr, argument []byte) error {
	m := task.MemoryManager()
	addr, err := m.MMap(task, memmap.MMapOpts{Length: hostarch.PageSize, Private: true, Perms: hostarch.ReadWrite, MaxPerms: hostarch.AnyAccess})
	if err != nil {
		return asErrno(err)
	}
	_, err = m.CopyOut(task, addr, argument, usermem.IOOpts{})
	if err == nil {
		var args arch.SyscallArguments
		args[1].Value, args[2].Value = request, uintptr(addr)
		_, err = t.master.Ioctl(task, m, unix.SYS_IOCTL, args)
	}
	if err == nil {
		_, err = m.CopyIn(task, addr, argument, usermem.IOOpts{})
	}
	return asNil(errors.Join(err, m.MUnmap(task, addr, hostarch.PageSize)))
}

func (t *terminal) findNumber(task *kernel.Task) error {
	var number [4]byte
	if err := t.ioctl(task, linux.TIOCGPTN, number[:]); err != nil {
		return fmt.Errorf("terminal number: %w", err)
	}
	t.number = binary.NativeEndian.Uint32(number[:])
	return nil
}

// setSize tells the terminal its size.
func (t *terminal) setSize(task *kernel.Task, s size) error {
	if s.Rows == 0 && s.Cols == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	w := linux.Winsize{Row: s.Rows, Col: s.Cols}
	buf := make([]byte, w.SizeBytes())
	w.MarshalBytes(buf)
	if err := t.ioctl(task, linux.TIOCSWINSZ, buf); err != nil {
		return fmt.Errorf("terminal size: %w", err)
	}
	return nil
}

// resize gives a terminal that is in use another size, in the name of a process
// made for it that never runs an instruction. That the program is gone meanwhile is no news.
func (t *terminal) resize(b *box, s size) {
	tg, err := b.idle("den-resize", nil)
	if err != nil {
		return
	}
	_ = t.setSize(tg.Leader(), s)
	b.discard(tg)
}

// output copies what the payload prints until it is gone and all is copied.
func (t *terminal) output(ctx context.Context) {
	defer t.hangUp()
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp)
	if err := t.master.EventRegister(&entry); err != nil {
		return
	}
	defer t.master.EventUnregister(&entry)
	buf := make([]byte, 32<<10)
	for last := false; ; {
		n, err := file{ctx, t.master}.Read(buf)
		if n > 0 {
			if _, err := t.socket.Write(buf[:n]); err != nil {
				_, _ = io.Copy(io.Discard, t.socket) // nobody looks; den is gone soon
				return
			}
			continue
		}
		if last || err != nil && !errors.Is(err, unix.EWOULDBLOCK) && err != io.EOF {
			return
		}
		select {
		case <-ready:
		case <-t.ended:
			last = true
		}
	}
}

// hangUp tells den that nothing more is printed. Closing alone would wait for input's read.
func (t *terminal) hangUp() {
	_ = unix.Shutdown(t.fd, unix.SHUT_RDWR)
	t.socket.Close()
}

// input copies what is typed.
func (t *terminal) input(ctx context.Context) {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	if err := t.master.EventRegister(&entry); err != nil {
		return
	}
	defer t.master.EventUnregister(&entry)
	buf := make([]byte, 4<<10)
	for {
		n, err := t.socket.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			w, werr := file{ctx, t.master}.Write(rest)
			rest = rest[w:]
			switch {
			case werr == nil:
			case errors.Is(werr, unix.EWOULDBLOCK):
				select {
				case <-ready:
				case <-t.ended:
					return
				}
			default:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// close gives the master back.
func (t *terminal) close(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.master.DecRef(ctx)
}

// finish returns when everything printed has been sent to den.
func (t *terminal) finish() {
	close(t.ended)
	t.copies.Wait()
}
