package sandbox

import (
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Descriptors of the holder after its leases: den, for reapOrphans, where process ids are
// shared, and of a detached sandbox the rest.
func (p *program) fdReaper() int { return fdLeases + p.o.leases }

func (p *program) fdRecords() int {
	if p.o.sharePids {
		return p.fdReaper() + 1
	}
	return p.fdReaper()
}

func (p *program) fdLeash() int { return p.fdRecords() + 1 }
func (p *program) fdDir() int   { return p.fdRecords() + 2 }

// tell writes a record for den. Of a detached sandbox it is kept in a file; the pipe only
// wakes who waits.
func (p *program) tell(record sys.Arg) {
	if p.o.detach {
		p.Do(unix.SYS_WRITE, sys.Int(p.fdRecords()), record, sys.Int(recordLength)).MayFail()
	}
	p.Do(unix.SYS_WRITE, sys.Int(fdStatus), record, sys.Int(recordLength)).MayFail()
}

// letGo releases the leases before the pipe ends by which others learn of it: the kernel promises
// no order for the files of a process that ends.
func (p *program) letGo() {
	if last := p.fdDrain() - 1; p.o.detach && last >= fdLeases {
		p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdLeases), sys.Int(last), sys.Int(0)).MayFail()
	}
}

// fdDrain is the first of the pipes to drain, which are the last leases.
func (p *program) fdDrain() int { return fdLeases + p.o.leases - len(p.r.Drain) }

// linger keeps the pipes to drain, and nothing else, until they are empty. A den that is there
// empties them at once; without one that takes until the next has come, or somebody has removed the
// sandbox's directory, in which the holder is.
func (p *program) linger() {
	first, n := p.fdDrain(), len(p.r.Drain)
	if !p.o.detach || n == 0 {
		return
	}
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(0), sys.Int(first-1), sys.Int(0)).MayFail()
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(first+n), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	fds := make([]sys.Arg, n)
	for i := range fds {
		fds[i] = sys.Int(uint64(first+i) | unix.POLLIN<<32)
	}
	polls, empty := p.Words(fds...), p.Label()
	look := func(sleepNanoseconds int) {
		p.Do(unix.SYS_PPOLL, polls, sys.Int(n), p.Words(sys.Int(0), sys.Int(0)), sys.Int(0), sys.Int(8)).Zero(empty).MayFail()
		p.Do(unix.SYS_CLOCK_NANOSLEEP, sys.Int(unix.CLOCK_MONOTONIC), sys.Int(0), p.Words(sys.Int(0), sys.Int(sleepNanoseconds)), sys.Int(0)).MayFail()
	}
	for range lingerQuickly {
		look(1e6)
	}
	loop := p.Label()
	p.Mark(loop)
	p.Do(unix.SYS_FACCESSAT, sys.Int(unix.AT_FDCWD), p.Str(fileRecords), sys.Int(unix.F_OK)).Err(empty)
	look(1e8)
	p.Goto(loop)
	p.Mark(empty)
}

// lingerQuickly is how often a holder looks each millisecond whether somebody has emptied its pipes; later it does
// ten times a second.
const lingerQuickly = 20

// detachBegin writes down the holder's process id and enters the directory, in which
// it will look for who asks for the terminal.
func (p *program) detachBegin() {
	own := p.Words(sys.Int(uint64(recordHolder)), sys.Int(0))
	p.Do(unix.SYS_GETPID).To(own.Part(8))
	p.Do(unix.SYS_WRITE, sys.Int(p.fdRecords()), own, sys.Int(recordLength)).Note("write the records")
	p.Do(unix.SYS_FCHDIR, sys.Int(p.fdDir())).Note("enter the sandbox's directory")
	p.Do(unix.SYS_CLOSE, sys.Int(p.fdDir())).MayFail()
}

// holdAlone is holdWithDen for a detached sandbox. Until den lets go of the leash its
// end kills the payload: nothing runs that nobody has heard of. Then only the payload's
// end matters. A word on the control pipe is a signal; before it is sent the terminal is
// offered to who may be waiting for it.
func (p *program) holdAlone(polls sys.Arg, pid, status *sys.Cell, ended sys.Label) {
	loop, control, orphan := p.Label(), p.Label(), p.Label()
	signal := p.Cell(0)
	// The word that comes over the leash takes its place in the list: descriptor -1, nothing to wait for. With it
	// comes the terminal, whose control message is sent on as it came.
	rights := p.Buffer(24)
	leash := p.Words(sys.Int(0), sys.Int(0), p.Words(polls.Plus(16), sys.Int(8)), sys.Int(1), rights, sys.Int(24), sys.Int(0))
	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, sys.Int(3), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(unix.WNOHANG), sys.Int(0)).Pos(ended).Err(ended)
	p.Do(unix.SYS_RECVMSG, sys.Int(p.fdLeash()), leash, sys.Int(unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)).Err(control).Zero(orphan)
	p.Do(unix.SYS_CLOSE, sys.Int(p.fdLeash())).MayFail()
	p.Mark(control)
	p.Do(unix.SYS_READ, sys.Int(fdControl), signal.Addr(), sys.Int(8)).Err(loop).Zero(loop)
	if p.spec.Process.Terminal {
		p.offerTerminal(rights)
	}
	p.Do(unix.SYS_KILL, pid.Value(), signal.Value()).MayFail()
	p.Goto(loop)
	p.Mark(orphan)
	p.killAndWait(pid, status)
}

// offerTerminal sends the control message to the socket of who asked for it, if anybody did.
func (p *program) offerTerminal(rights sys.Arg) {
	socket := p.Cell(0)
	address := p.Bytes(append([]byte{unix.AF_UNIX, 0}, fileTake+"\x00"...)) // struct sockaddr_un
	iov := p.Words(p.Bytes([]byte{'f', 0, 0, 0, 0, 0, 0, 0}), sys.Int(1))
	msg := p.Words(address, sys.Int(2+len(fileTake)+1), iov, sys.Int(1), rights, sys.Int(24), sys.Int(0))
	p.Do(unix.SYS_SOCKET, sys.Int(unix.AF_UNIX), sys.Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), sys.Int(0)).To(socket).MayFail()
	p.Do(unix.SYS_SENDMSG, socket.Value(), msg, sys.Int(unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)).MayFail()
	p.Close(socket)
}
