package socket

import (
	"net"
	"sync"
)

// tlsHandshake is the first byte of a TLS record of type handshake (RFC 8446, 5.1),
// which no HTTP request begins with.
const tlsHandshake = 0x16

// Plain wraps a listener that speaks HTTP. A client that begins TLS with it gets an
// answer that says so, and so does said, once for each connection.
func Plain(l net.Listener, said func(remote string)) net.Listener { return &plain{l, said} }

type plain struct {
	net.Listener
	said func(remote string)
}

// Accept waits for a connection.
func (p *plain) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &plainConn{Conn: c, said: p.said}, nil
}

// A plainConn looks at the first byte that it reads.
type plainConn struct {
	net.Conn
	once sync.Once
	said func(remote string)
}

// Read reads; the first time it may find TLS and end the connection.
func (c *plainConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.once.Do(func() {
		if n > 0 && b[0] == tlsHandshake {
			c.said(c.RemoteAddr().String())
			// What net/http calls an HTTP response to an HTTPS client.
			_, _ = c.Conn.Write([]byte("HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent a TLS request to a plain HTTP server.\n"))
			n, err = 0, net.ErrClosed
		}
	})
	return n, err
}

// NetConn is the connection itself, for who has to know whether the client is still there.
func (c *plainConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the half that is written, for connections that are hijacked.
func (c *plainConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// CloseRead ends the half that is read.
func (c *plainConn) CloseRead() error {
	if h, ok := c.Conn.(interface{ CloseRead() error }); ok {
		return h.CloseRead()
	}
	return c.Close()
}
