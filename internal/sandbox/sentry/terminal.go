package sentry

import (
	"errors"
	"fmt"
	"io"
	"os"
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
// the sentry's own, and the payload sees it as /dev/pts/0. What is typed and
// printed goes through a socket from and to den.
type terminal struct {
	master *vfs.FileDescription
	socket *os.File
	copies sync.WaitGroup
	ended  chan struct{} // the payload is gone
}

// ttyGroup is the group tty of every distribution, as Docker has it.
const ttyGroup = 5

// newTerminal makes a terminal the controlling one of leader, and its standard streams.
func (b *box) newTerminal(leader *kernel.Task, table *kernel.FDTable) (*terminal, error) {
	v := b.k.VFS()
	var ctx context.Context = leader
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	n, err := b.fd(b.r.TerminalFD)
	if err != nil {
		return nil, err
	}
	t := &terminal{socket: os.NewFile(uintptr(n), "terminal"), ended: make(chan struct{})}
	if t.master, err = v.OpenAt(ctx, b.root, follow(root, "/dev/pts/ptmx"), &vfs.OpenOptions{Flags: linux.O_RDWR | linux.O_NOCTTY}); err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: asErrno(err)}
	}
	const slave = "/dev/pts/0"
	err = v.SetStatAt(ctx, b.root, at(root, slave), &vfs.SetStatOptions{Stat: linux.Statx{
		Mask: linux.STATX_UID | linux.STATX_GID | linux.STATX_MODE, UID: b.r.UID, GID: ttyGroup, Mode: 0o620,
	}})
	if err != nil {
		return nil, &os.PathError{Op: "chown", Path: slave, Err: asErrno(err)}
	}
	if err := b.console(root, slave); err != nil {
		return nil, err
	}
	// A session leader without a terminal that opens one has it from then on.
	f, err := v.OpenAt(ctx, b.root, at(root, slave), &vfs.OpenOptions{Flags: linux.O_RDWR})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: slave, Err: asErrno(err)}
	}
	defer f.DecRef(ctx)
	for i := range int32(3) {
		if _, err := table.NewFDAt(ctx, i, f, kernel.FDFlags{}); err != nil {
			return nil, fmt.Errorf("standard streams: %w", asErrno(err))
		}
	}
	if err := t.setSize(leader, *b.r.Terminal); err != nil {
		return nil, err
	}
	t.copies.Go(func() { t.output(b.ctx) })
	go t.input(b.ctx) // until den closes the socket
	return t, nil
}

// console shows the terminal as /dev/console, too.
func (b *box) console(root vfs.VirtualDentry, slave string) error {
	v := b.k.VFS()
	ctx := b.ctx
	d, err := v.GetDentryAt(ctx, b.root, at(root, slave), &vfs.GetDentryOptions{})
	if err != nil {
		return &os.PathError{Op: "find", Path: slave, Err: asErrno(err)}
	}
	defer d.DecRef(ctx)
	const console = "/dev/console"
	err = v.MknodAt(ctx, b.root, at(root, console), &vfs.MknodOptions{Mode: linux.S_IFREG | 0o600})
	if err != nil && errnoOf(err) != unix.EEXIST {
		return &os.PathError{Op: "create", Path: console, Err: asErrno(err)}
	}
	m := v.NewDisconnectedMount(d.Mount().Filesystem(), d.Dentry(), &vfs.MountOptions{})
	if err := v.ConnectMountAt(ctx, b.root, m, at(root, console)); err != nil {
		return &os.PathError{Op: "mount", Path: console, Err: asErrno(err)}
	}
	return nil
}

// setSize tells the terminal its size. An ioctl takes its argument from the memory of a
// task that does not run: a page is mapped for it and unmapped again.
func (t *terminal) setSize(task *kernel.Task, s size) error {
	if s.Rows == 0 && s.Cols == 0 {
		return nil
	}
	m := task.MemoryManager()
	addr, err := m.MMap(task, memmap.MMapOpts{Length: hostarch.PageSize, Private: true, Perms: hostarch.ReadWrite, MaxPerms: hostarch.AnyAccess})
	if err != nil {
		return fmt.Errorf("terminal size: %w", asErrno(err))
	}
	w := linux.Winsize{Row: s.Rows, Col: s.Cols}
	buf := make([]byte, w.SizeBytes())
	w.MarshalBytes(buf)
	if _, err := m.CopyOut(task, addr, buf, usermem.IOOpts{}); err != nil {
		return fmt.Errorf("terminal size: %w", asErrno(err))
	}
	var args arch.SyscallArguments
	args[1].Value, args[2].Value = uintptr(linux.TIOCSWINSZ), uintptr(addr)
	_, err = t.master.Ioctl(task, m, unix.SYS_IOCTL, args)
	return asNil(errors.Join(err, m.MUnmap(task, addr, hostarch.PageSize)))
}

// resize gives a terminal that is in use another size, in the name of a process
// made for it that never runs an instruction: it starts with a SIGKILL pending. That the
// payload is gone meanwhile is no news.
func (t *terminal) resize(b *box, s size) {
	tg, err := b.idle("den-resize")
	if err != nil {
		return
	}
	_ = t.setSize(tg.Leader(), s)
	_ = b.k.SendExternalSignalThreadGroup(tg, &linux.SignalInfo{Signo: int32(linux.SIGKILL)})
	b.k.StartProcess(tg)
}

// output copies what the payload prints until it is gone and all is copied.
func (t *terminal) output(ctx context.Context) {
	defer t.socket.Close()
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

// finish returns when everything printed has been sent to den.
func (t *terminal) finish() {
	close(t.ended)
	t.copies.Wait()
}
