package dockerapi

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"
)

// A hijacked connection carries a container's streams in both directions.
type hijacked struct {
	conn    net.Conn
	reader  *bufio.Reader // what HTTP's server read ahead comes first
	in      io.Reader     // what the client sends, out of its frames
	frame   byte          // opcode of a websocket's frames; 0 is none
	timeout time.Duration
	// keys are those that detach the client from a terminal, which detached is told; nil are none.
	keys     []byte
	detached func()
	mu       sync.Mutex // one write at a time: frames of stdout and stderr do not mix
	close    sync.Once
	closed   error
}

// hijack takes the connection over and begins the answer: 101 if the client asked
// for an upgrade, else 200 without a length, which old clients read to its end. Call
// it when nothing can fail any more that has a status of its own, and after the body
// has been read.
func (c *call) hijack(w http.ResponseWriter, multiplexed bool) (*hijacked, error) {
	return c.takeOver(w, c.greeting(multiplexed))
}

// takeOver is hijack with any beginning of the answer.
func (c *call) takeOver(w http.ResponseWriter, greeting string) (*hijacked, error) {
	if c.ContentLength > 0 {
		// dockerode sends its options as a body, too: that is not the program's input.
		if _, err := io.Copy(io.Discard, io.LimitReader(c.Body, maxOptions)); err != nil {
			return nil, fmt.Errorf("hijack: read the request's body: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("hijack: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	c.hijacked = true
	// The server's deadlines were for HTTP.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("hijack: %w", err), conn.Close())
	}
	h := &hijacked{conn: conn, reader: rw.Reader, in: rw.Reader, timeout: c.server.WriteTimeout}
	if _, err := h.send([]byte(greeting)); err != nil {
		return nil, errors.Join(fmt.Errorf("hijack: %w", err), conn.Close())
	}
	if strings.HasPrefix(c.UserAgent(), "docker-sdk-python/") {
		untilRead(conn)
	}
	return h, nil
}

const (
	// maxUnread is how long the head of an answer may lie unread before the stream begins.
	maxUnread = 200 * time.Millisecond
	// untold is for a client that may read later than what is known says.
	untold = 5 * time.Millisecond
)

// untilRead waits until the client has taken what was sent. docker-py reads the head of
// an answer through a buffer and the stream past it: what comes together with the head it loses
// (docker.api.client, _get_raw_response_socket). A program that says something 50 ms later is
// never seen to lose it; here it is faster.
func untilRead(conn net.Conn) {
	local := false
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(syscall.Conn); ok {
		raw, err := c.SyscallConn()
		if err != nil {
			return
		}
		_, local = conn.(*net.UnixConn)
		for end := time.Now().Add(maxUnread); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
			unread := 0
			err := raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
			if err != nil || unread == 0 {
				break
			}
		}
	}
	if !local { // its system has it, which it may not have asked yet
		time.Sleep(untold)
	}
}

// maxOptions bounds the body of a request that becomes a stream, in bytes.
const maxOptions = 1 << 20

// greeting is the head of the answer.
func (c *call) greeting(multiplexed bool) string {
	media := types.MediaTypeRawStream
	if _, upgrade := c.Header["Upgrade"]; !upgrade {
		return "HTTP/1.1 200 OK\r\nContent-Type: " + media + "\r\n\r\n"
	}
	if multiplexed && c.version >= 42 {
		media = types.MediaTypeMultiplexedStream
	}
	return "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + media + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
}

// Read gives what the client sends; io.EOF when it has closed its side.
func (h *hijacked) Read(p []byte) (int, error) { return h.in.Read(p) }

// Write sends p. A client that takes nothing of it for the server's WriteTimeout is given up.
func (h *hijacked) Write(p []byte) (int, error) {
	if h.frame == 0 || len(p) == 0 {
		return h.send(p)
	}
	if err := h.writeFrame(h.frame, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (h *hijacked) send(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.conn.SetWriteDeadline(time.Now().Add(h.timeout)); err != nil {
		return 0, err
	}
	return h.conn.Write(p)
}

// Close ends both directions.
func (h *hijacked) Close() error {
	h.close.Do(func() { h.closed = h.conn.Close() })
	return h.closed
}

// finish says to the client that nothing more comes, and gives it a moment to say the
// same: a connection that is closed while words of the client are unread loses what
// the client has not read.
func (h *hijacked) finish() {
	if h.frame != 0 {
		_ = h.writeFrame(wsClose, binary.BigEndian.AppendUint16(nil, wsNormal)) // or it is gone
	}
	if c, ok := h.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = h.conn.SetReadDeadline(time.Now().Add(time.Second)) // a connection that is gone needs none
		return
	}
	_ = h.Close()
}

// input copies what the client sends to w, which may be nil, and closes w when the
// client closes its side or is gone. It returns as soon as nothing is to come of the client, or
// with true when it has typed its detach keys: w stays as it is then.
func (h *hijacked) input(w io.WriteCloser) (detached bool) {
	if w != nil {
		typed := &keyReader{r: h, keys: h.keys}
		var in io.Reader = h
		if len(h.keys) > 0 {
			in = typed
		}
		_, _ = io.Copy(w, in) // either end may be gone, which is no error
		if typed.detached {
			return true
		}
		_ = w.Close()
	}
	_, _ = io.Copy(io.Discard, h) // what a program does not take is not kept for it
	return false
}

// left says that a websocket's client takes nothing any more.
func (h *hijacked) left() bool {
	r, ok := h.in.(*wsReader)
	return ok && (errors.Is(r.err, errClosedByPeer) || errors.Is(r.err, errWebsocket))
}

// gone returns true when the client has closed both directions, false when ctx has
// ended. A connection that is half closed, or whose input nobody reads, tells of its
// other half only when asked.
func (h *hijacked) gone(ctx context.Context) bool {
	for pause := 10 * time.Millisecond; !hungUp(h.conn); pause = min(2*pause, 5*time.Second) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	return true
}

// hungUp says that nobody can read what is written to conn.
func hungUp(conn net.Conn) bool {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		hup = err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	})
	return hup || err != nil
}
