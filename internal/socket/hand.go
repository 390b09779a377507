package socket

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The environment that hands listeners over: ours, and systemd's
// (sd_listen_fds(3)).
const (
	handedEnv     = "DEN_LISTENERS"
	activePidEnv  = "LISTEN_PID"
	activeEnv     = "LISTEN_FDS"
	activeNameEnv = "LISTEN_FDNAMES"
	firstActive   = 3
	mostActive    = 64
)

// A handed listener is what the next program is told of it.
type handed struct {
	Address Address
	FD      int
	Lock    int // -1 without one
}

// Hand keeps listeners open over execve and tells the program that Inherit will
// run in. The listeners go on working here. undo takes it back, if there was no execve.
func Hand(listeners []*Listener) (undo func(), err error) {
	var hands []handed
	var fds []int
	undo = func() {
		os.Unsetenv(handedEnv)
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	keep := func(c syscall.Conn) (int, error) {
		fd, err := lasting(c)
		if err == nil {
			fds = append(fds, fd)
		}
		return fd, err
	}
	for _, l := range listeners {
		c, ok := l.Listener.(syscall.Conn)
		if !ok {
			return undo, fmt.Errorf("hand over %s: a listener without descriptor: %w", l.Address, errdefs.ErrInvalidArgument)
		}
		h := handed{Address: l.Address, Lock: -1}
		if h.FD, err = keep(c); err == nil && l.lock != nil {
			h.Lock, err = keep(l.lock)
		}
		if err != nil {
			return undo, fmt.Errorf("hand over %s: %w", l.Address, err)
		}
		hands = append(hands, h)
	}
	text, err := json.Marshal(hands)
	if err != nil {
		return undo, err
	}
	return undo, os.Setenv(handedEnv, string(text))
}

// lasting is a copy of a descriptor that survives execve.
func lasting(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	// Not File's Fd, which would make the listener block.
	if e := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD, firstActive) }); e != nil {
		return -1, e
	}
	return fd, os.NewSyscallError("dup", err)
}

// Inherit returns the listeners that Hand left to this program, none if it left none. The
// environment is clean after.
func Inherit() (_ []*Listener, err error) {
	text := os.Getenv(handedEnv)
	if text == "" {
		return nil, nil
	}
	os.Unsetenv(handedEnv)
	var hands []handed
	if err := json.Unmarshal([]byte(text), &hands); err != nil {
		return nil, fmt.Errorf("listeners in %s: %w", handedEnv, err)
	}
	var all []*Listener
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
		}
	}()
	for _, h := range hands {
		l, err := adopt(h.FD)
		if err != nil {
			return nil, fmt.Errorf("listeners in %s: %w", handedEnv, err)
		}
		took := &Listener{Listener: l, Address: h.Address}
		if h.Lock >= 0 {
			unix.CloseOnExec(h.Lock)
			took.lock = os.NewFile(uintptr(h.Lock), h.Address.Name+".lock")
		}
		all = append(all, took)
	}
	return all, nil
}

// adopt makes a listener of a descriptor, which it closes.
func adopt(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, unix.EBADF)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}

// activated are the listeners that systemd, or whoever speaks its protocol, opened:
// all of them, or the one whose number a has.
func activated(a Address) ([]*Listener, error) {
	var fds []int
	if a.Name != "" {
		n, err := strconv.Atoi(a.Name)
		if err != nil {
			return nil, fmt.Errorf("listen %s: %w: %w", a, err, errdefs.ErrInvalidArgument)
		}
		fds = append(fds, n)
	} else {
		count, _ := strconv.Atoi(os.Getenv(activeEnv))
		pid := os.Getenv(activePidEnv)
		if count <= 0 || count > mostActive || pid != "" && pid != strconv.Itoa(os.Getpid()) {
			return nil, fmt.Errorf("listen %s: no sockets were handed over: %s and %s name none for this process: %w", a, activeEnv, activePidEnv, errdefs.ErrNotFound)
		}
		for i := range count {
			fds = append(fds, firstActive+i)
		}
	}
	for _, name := range []string{activeEnv, activePidEnv, activeNameEnv} {
		os.Unsetenv(name) // they are not the containers'
	}
	var all []*Listener
	for _, fd := range fds {
		l, err := adopt(fd)
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return nil, fmt.Errorf("listen %s: %w", a, err)
		}
		all = append(all, &Listener{Listener: l, Address: Address{FD, strconv.Itoa(fd)}})
	}
	return all, nil
}
