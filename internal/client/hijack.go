package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/containerd/errdefs"
)

// A Stream is a connection that was taken from HTTP: a container's or program's streams.
type Stream struct {
	conn net.Conn
	r    *bufio.Reader
	stop func() bool
}

// Hijack asks for a stream.
func (c *Client) Hijack(ctx context.Context, r Request) (*Stream, error) {
	q, err := r.prepare(ctx, "docker")
	if err != nil {
		return nil, err
	}
	q.Header.Set("Connection", "Upgrade")
	q.Header.Set("Upgrade", "tcp")
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stream{conn: conn, r: bufio.NewReader(conn), stop: context.AfterFunc(ctx, func() { conn.Close() })}
	answer, err := s.begin(q)
	if err != nil {
		s.Close()
		return nil, err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols && answer.StatusCode != http.StatusOK {
		defer s.Close()
		return nil, refusal(answer)
	}
	return s, nil
}

func (s *Stream) begin(q *http.Request) (*http.Response, error) {
	if err := q.Write(s.conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(s.r, q)
}

// Write sends to the program's standard input.
func (s *Stream) Write(p []byte) (int, error) { return s.conn.Write(p) }

// CloseWrite ends the program's standard input.
func (s *Stream) CloseWrite() error {
	if h, ok := s.conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// Close ends the connection.
func (s *Stream) Close() error {
	s.stop()
	return s.conn.Close()
}

// Copy copies the output until it ends: raw of a terminal, else taken apart by stream.
func (s *Stream) Copy(tty bool, stdout, stderr io.Writer) error {
	if tty {
		_, err := io.Copy(stdout, s.r)
		return err
	}
	return CopyFrames(s.r, stdout, stderr)
}

// CopyFrames takes docker's frames apart: the number of a stream, three zero bytes, a length of 32
// bits, the bytes.
func CopyFrames(r io.Reader, stdout, stderr io.Writer) error {
	var head [8]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read output: %w", err)
		}
		to := stdout
		switch head[0] {
		case 0, 1:
		case 2:
			to = stderr
		default:
			return fmt.Errorf("read output: stream %d: %w", head[0], errdefs.ErrDataLoss)
		}
		if _, err := io.CopyN(to, r, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return fmt.Errorf("read output: %w", err)
		}
	}
}
