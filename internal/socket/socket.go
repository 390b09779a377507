// Package socket listens where docker's clients look: on unix sockets, TCP ports
// and descriptors that somebody else opened.
//
// A unix socket is guarded by a lock on a file beside it, which vanishes with the
// process: who gets the lock, and finds nobody who answers, may take a stale
// socket away. Listeners can be handed to a program that this process becomes
// by execve, so that a connection made in between waits instead of failing.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The networks of an Address.
const (
	Unix = "unix"
	TCP  = "tcp"
	FD   = "fd"
)

// The ports that docker's clients and scanners expect.
const (
	PlainPort = "2375"
	TLSPort   = "2376"
)

// An Address is where to listen, as dockerd's --host spells it.
type Address struct {
	// Network is Unix, TCP or FD.
	Network string
	// Name is a path, a host with its port, or the number of a descriptor. An FD without
	// one means all that systemd handed over.
	Name string
}

// String is the spelling that Parse reads.
func (a Address) String() string { return a.Network + "://" + a.Name }

// Parse reads an address: "unix:///run/docker.sock", "tcp://0.0.0.0:2375", "fd://3", or the host
// and port alone. port is what a TCP address without one gets.
func Parse(s, port string) (Address, error) {
	network, name, found := strings.Cut(strings.TrimSpace(s), "://")
	if !found {
		network, name = TCP, network
	}
	bad := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("unable to parse host %.200q: %s; want unix:///PATH, tcp://HOST:PORT or fd://: %w", s, why, errdefs.ErrInvalidArgument)
	}
	switch network {
	case Unix:
		if name == "" {
			name = "/var/run/docker.sock"
		}
		if strings.ContainsRune(name, 0) {
			return bad("a path with a zero byte")
		}
		if !filepath.IsAbs(name) {
			return bad("the path is not absolute")
		}
		if len(name) > unixPathBytes {
			return bad(fmt.Sprintf("the path is longer than the %d bytes that a socket's may have", unixPathBytes))
		}
		return Address{Unix, filepath.Clean(name)}, nil
	case TCP:
		name = strings.TrimSuffix(name, "/")
		host, p, err := net.SplitHostPort(name)
		if err != nil {
			host, p = strings.Trim(name, "[]"), port
		}
		if p == "" {
			p = port
		}
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || strings.ContainsAny(host, "/ ?#@") {
			return bad("not a host and a port from 0 to 65535")
		} else if p = strconv.FormatUint(n, 10); host == "" {
			host = "127.0.0.1" // as dockerd does: an empty host is not every host
		}
		return Address{TCP, net.JoinHostPort(host, p)}, nil
	case FD:
		if _, err := strconv.ParseUint(name, 10, 16); err != nil && name != "" && name != "*" {
			return bad("not the number of a descriptor")
		}
		return Address{FD, strings.TrimPrefix(name, "*")}, nil
	}
	return bad("unknown protocol " + strconv.Quote(network))
}

// unixPathBytes is the length of sockaddr_un's path without the zero byte.
const unixPathBytes = 107

// A Listener accepts connections at an Address.
type Listener struct {
	net.Listener
	Address Address
	lock    *os.File // of a unix socket; nil for others

	closing sync.Once
	closed  error
}

// Options refine Listen for unix sockets.
type Options struct {
	// GID owns the socket, which its members may use; -1 leaves root's, 0660.
	GID int
}

// Listen opens an address. A FD without a number may be several listeners. An error is of class
// errdefs.ErrAlreadyExists where somebody else listens.
func Listen(ctx context.Context, a Address, o Options) ([]*Listener, error) {
	switch a.Network {
	case FD:
		return activated(a)
	case Unix:
		l, err := listenUnix(ctx, a, o)
		if err != nil {
			return nil, err
		}
		return []*Listener{l}, nil
	}
	var c net.ListenConfig
	l, err := c.Listen(ctx, TCP, a.Name)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("listen %s: somebody else listens there; end it, or choose another port with --host: %w", a, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return []*Listener{{Listener: l, Address: Address{TCP, l.Addr().String()}}}, nil
}

// listenUnix takes the lock beside the socket, removes a socket where nobody answers, and binds.
func listenUnix(ctx context.Context, a Address, o Options) (_ *Listener, err error) {
	if err := os.MkdirAll(filepath.Dir(a.Name), 0o755); err != nil {
		return nil, elsewhere(a, err)
	}
	lock, err := takeLock(a)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := removeStale(ctx, a); err != nil {
		return nil, err
	}
	l, err := bind(ctx, a, o)
	if err != nil {
		return nil, elsewhere(a, err)
	}
	return &Listener{Listener: l, Address: a, lock: lock}, nil
}

// elsewhere is the error where no socket can be made.
func elsewhere(a Address, err error) error {
	return fmt.Errorf("listen %s: %w; name a place that can be written with --host, such as unix:///DIRECTORY/docker.sock", a, err)
}

// Try finds out whether Listen would get a unix address, and leaves everything as it is: inUse says that
// somebody answers there, an error why nobody could listen there.
func Try(ctx context.Context, a Address) (inUse bool, err error) {
	if a.Network != Unix {
		return false, fmt.Errorf("try %s: it is no unix socket: %w", a, errdefs.ErrInvalidArgument)
	}
	if fi, err := os.Lstat(a.Name); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return false, fmt.Errorf("try %s: there is a file that is no socket: %w", a, errdefs.ErrAlreadyExists)
		}
		d := net.Dialer{Timeout: answers}
		c, err := d.DialContext(ctx, Unix, a.Name)
		if err == nil {
			return true, c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("try %s: %w", a, err)
		}
	}
	if lock, err := os.OpenFile(a.Name+".lock", os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
		lock.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("try %s: %w", a, err)
	}
	dir := filepath.Dir(a.Name) // or what is there of it
	for fi, err := os.Stat(dir); err != nil || !fi.IsDir(); fi, err = os.Stat(dir) {
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return false, fmt.Errorf("try %s: %s is no directory", a, dir)
		}
		dir = filepath.Dir(dir)
	}
	l, tmp, err := bindIn(ctx, dir)
	if err != nil {
		return false, fmt.Errorf("try %s: %w", a, err)
	}
	return false, errors.Join(l.Close(), os.RemoveAll(tmp))
}

// bindIn binds a socket "s" in a new directory in dir, which is the caller's to remove.
func bindIn(ctx context.Context, dir string) (_ net.Listener, tmp string, err error) {
	if tmp, err = os.MkdirTemp(dir, ".den-"); err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	// A path through the directory's descriptor is short, however long its name is.
	d, err := os.Open(tmp)
	if err != nil {
		return nil, "", err
	}
	defer d.Close()
	var c net.ListenConfig
	l, err := c.Listen(ctx, Unix, fmt.Sprintf("/proc/self/fd/%d/s", d.Fd()))
	if err != nil {
		return nil, "", err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, tmp, nil
}

// bind binds under a name that nobody knows and renames, so that nobody meets a socket
// without its owner and mode.
func bind(ctx context.Context, a Address, o Options) (_ net.Listener, err error) {
	l, dir, err := bindIn(ctx, filepath.Dir(a.Name))
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	at := filepath.Join(dir, "s")
	if err := os.Chmod(at, 0o660); err != nil {
		return nil, err
	}
	if o.GID >= 0 {
		if err := os.Lchown(at, -1, o.GID); err != nil {
			return nil, fmt.Errorf("give the socket to group %d: %w", o.GID, err)
		}
	}
	return l, os.Rename(at, a.Name)
}

// takeLock locks the file beside a unix socket.
func takeLock(a Address) (*os.File, error) {
	f, err := os.OpenFile(a.Name+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, elsewhere(a, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("listen %s: another den listens there; end it, or choose another socket with --host: %w", a, errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("listen %s: lock %s: %w", a, f.Name(), err)
	}
	return f, nil
}

// answers is how long somebody who listens may take to accept a connection.
const answers = 2 * time.Second

// removeStale removes a socket that nobody answers at. Nothing else is ever removed.
func removeStale(ctx context.Context, a Address) error {
	fi, err := os.Lstat(a.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen %s: %w", a, err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen %s: there is a file that is no socket; remove it, or choose another with --host: %w", a, errdefs.ErrAlreadyExists)
	}
	d := net.Dialer{Timeout: answers}
	c, err := d.DialContext(ctx, Unix, a.Name)
	if err == nil {
		c.Close()
		return fmt.Errorf("listen %s: somebody else answers there; end it, or choose another socket with --host: %w", a, errdefs.ErrAlreadyExists)
	}
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen %s: find out whether it is in use: %w", a, err)
	}
	if err := os.Remove(a.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen %s: remove the stale socket: %w", a, err)
	}
	return nil
}

// Close ends it, and takes a unix socket away while the lock is held. Closing again does
// nothing: what is at the name then is another's.
func (l *Listener) Close() error {
	l.closing.Do(func() {
		l.closed = l.Listener.Close()
		if l.lock == nil {
			return
		}
		if err := os.Remove(l.Address.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.closed = errors.Join(l.closed, err)
		}
		l.lock.Close()
	})
	return l.closed
}
