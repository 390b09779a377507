package sandbox

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"fmt"

	"golang.org/x/sys/unix"
)

// relay makes a socket at path whose connections go to the socket source: an agent's,
// which cannot be copied. It ends with the sandbox.
func (p *placed) relay(source, path string, st *unix.Stat_t) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// A socket's address has room for 108 bytes.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // what is there is removed with the mount
	err = errors.Join(os.Lchown(path, int(st.Uid), int(st.Gid)), chmod(path, st.Mode&0o7777))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	r := &relaying{source: source, open: map[net.Conn]bool{}}
	r.wg.Go(func() { r.accept(l) })
	p.undos = append(p.undos, func() error {
		err := l.Close()
		r.end()
		return err
	})
	return nil
}

// relaying are the connections of one relay.
type relaying struct {
	source string
	wg     sync.WaitGroup
	mu     sync.Mutex
	ended  bool
	open   map[net.Conn]bool
}

func (r *relaying) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("unix", r.source)
		if err != nil || !r.add(c, to) {
			c.Close() // as if nobody listened
			continue
		}
		r.wg.Go(func() { transfer(c, to) })
		r.wg.Go(func() { transfer(to, c) })
	}
}

// transfer copies what one end says to the other, which learns when it ends.
func transfer(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if u, ok := to.(*net.UnixConn); ok {
		_ = u.CloseWrite()
	}
}

func (r *relaying) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		if r.ended {
			c.Close()
			continue
		}
		r.open[c] = true
	}
	return !r.ended
}

// end closes what is open and waits for the copies.
func (r *relaying) end() {
	r.mu.Lock()
	r.ended = true
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
