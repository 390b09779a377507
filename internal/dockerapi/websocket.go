package dockerapi

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"den/internal/engine"
)

// attachWebsocket is attach for what can open websockets only. The streams are not told apart.
func (s *Server) attachWebsocket(w http.ResponseWriter, c *call) error {
	accept, err := c.websocketKey()
	if err != nil {
		return err
	}
	o := engine.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Logs: c.flag("logs"), Stream: c.flag("stream")}
	if c.version >= 42 {
		o.Stdin, o.Stdout, o.Stderr = c.flag("stdin"), c.flag("stdout"), c.flag("stderr")
	}
	keys, err := c.detachKeys()
	if err != nil {
		return err
	}
	ctx := context.WithoutCancel(c.Context())
	a, err := s.Engine.Attach(ctx, c.name, o)
	if err != nil {
		return err
	}
	h, err := c.takeOver(w, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+accept+"\r\n\r\n")
	if err != nil {
		return errors.Join(err, a.Close())
	}
	h.speakWebsocket(c.version)
	if a.TTY() {
		h.keys, h.detached = keys, func() { s.Engine.Detached(c.name, "") }
	}
	var stdout, stderr io.Writer
	if o.Stdout || a.TTY() {
		stdout = h
	}
	if o.Stderr {
		stderr = h
	}
	return h.carry(ctx, stdinOf(a, o), func(ctx context.Context) error {
		return errors.Join(a.Copy(ctx, stdout, stderr), a.Close())
	})
}

// websocketGUID is RFC 6455's, section 1.3.
const websocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// websocketKey checks the client's handshake (RFC 6455, section 4.2.1) and answers its key.
func (c *call) websocketKey() (accept string, err error) {
	has := func(header, token string) bool {
		return slices.ContainsFunc(strings.Split(strings.Join(c.Header.Values(header), ","), ","), func(v string) bool {
			return strings.EqualFold(strings.TrimSpace(v), token)
		})
	}
	key := c.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case !has("Upgrade", "websocket") || !has("Connection", "upgrade"):
		return "", invalid("not websocket protocol")
	case c.Header.Get("Sec-WebSocket-Version") != "13":
		return "", invalid("missing or bad WebSocket Version: want 13")
	case err != nil || len(raw) != 16:
		return "", invalid("challenge response: the Sec-WebSocket-Key is not 16 bytes in base64")
	case !c.ownOrigin():
		return "", forbidden("a page of %.80q may not attach: its origin is not this server's", c.Header.Get("Origin"))
	}
	sum := sha1.Sum([]byte(key + websocketGUID))
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

// ownOrigin keeps pages of the world out: a browser lets each open a websocket to anywhere, and
// says only where the page is from.
func (c *call) ownOrigin() bool {
	text := c.Header.Get("Origin")
	if text == "" {
		return true // no browser
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return strings.EqualFold(u.Host, c.Host) || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// Opcodes of RFC 6455, section 5.2.
const (
	wsContinuation = 0x0
	wsText         = 0x1
	wsBinary       = 0x2
	wsClose        = 0x8
	wsPing         = 0x9
	wsPong         = 0xa
)

// Reasons for the end, of section 7.4.1.
const (
	wsNormal        = 1000
	wsProtocolError = 1002
)

var errWebsocket = errors.New("websocket: the client breaks the protocol")

// speakWebsocket puts what is read and written into frames from now on. Versions before 1.28
// have them called text.
func (h *hijacked) speakWebsocket(v version) {
	kind := byte(wsBinary)
	if v < 28 {
		kind = wsText
	}
	conn := h.reader
	h.in = &wsReader{r: conn, answer: func(op byte, payload []byte) error { return h.writeFrame(op, payload) }}
	h.frame = kind
}

// writeFrame sends one frame.
func (h *hijacked) writeFrame(op byte, payload []byte) error {
	head := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		head = append(head, byte(n))
	case n < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(n))
	}
	_, err := h.send(slices.Concat(head, payload))
	return err
}

// A wsReader gives what a client's data frames carry. It keeps nothing of them.
type wsReader struct {
	r      *bufio.Reader
	answer func(op byte, payload []byte) error
	left   uint64 // of the frame that is being read
	mask   [4]byte
	at     int  // in mask
	inside bool // a message that has more frames
	err    error
}

func (r *wsReader) Read(p []byte) (int, error) {
	for r.left == 0 && r.err == nil {
		r.err = r.next()
	}
	if r.err != nil {
		return 0, r.err
	}
	if uint64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.r.Read(p)
	r.unmask(p[:n])
	r.left -= uint64(n)
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *wsReader) unmask(p []byte) {
	for i := range p {
		p[i] ^= r.mask[r.at&3]
		r.at++
	}
}

// next reads the head of the next data frame, and answers control frames on the way.
func (r *wsReader) next() error {
	var head [2]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return err
	}
	op, final, size := head[0]&0xf, head[0]&0x80 != 0, uint64(head[1]&0x7f)
	// Reserved bits have no meaning here, and a client masks (sections 5.2 and 5.1).
	if head[0]&0x70 != 0 || head[1]&0x80 == 0 {
		return r.broken()
	}
	for _, long := range []struct {
		mark uint64
		n    int
	}{{126, 2}, {127, 8}} {
		if size != long.mark {
			continue
		}
		var b [8]byte
		if _, err := io.ReadFull(r.r, b[8-long.n:]); err != nil {
			return err
		}
		size = binary.BigEndian.Uint64(b[:])
		break
	}
	if _, err := io.ReadFull(r.r, r.mask[:]); err != nil {
		return err
	}
	r.at = 0
	switch op {
	case wsText, wsBinary, wsContinuation:
		if (op == wsContinuation) != r.inside || size >= 1<<63 {
			return r.broken()
		}
		r.inside, r.left = !final, size
		return nil
	case wsClose, wsPing, wsPong:
		if !final || size > 125 {
			return r.broken()
		}
		return r.control(op, int(size))
	}
	return r.broken()
}

// control obeys a control frame. Whoever says that it closes gets that back, and takes nothing any more.
func (r *wsReader) control(op byte, size int) error {
	var b [125]byte
	payload := b[:size]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		return err
	}
	r.unmask(payload)
	switch op {
	case wsPing:
		return r.answer(wsPong, payload)
	case wsClose:
		if size > 2 {
			payload = payload[:2] // the reason without its words
		}
		_ = r.answer(wsClose, payload) // nobody may be there any more
		return errClosedByPeer
	}
	return nil
}

// errClosedByPeer says that the client has said that it closes.
var errClosedByPeer = errors.New("websocket: closed by the client")

func (r *wsReader) broken() error {
	_ = r.answer(wsClose, binary.BigEndian.AppendUint16(nil, wsProtocolError)) // nobody may be there any more
	return errWebsocket
}
