package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// serve listens on a unix socket and serves s until the test ends.
func serve(t testing.TB, s *Server) (dial func() *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := s.HTTP()
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return func() *net.UnixConn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
}

// echo is a server whose only operation sends back what it is sent, and a last line
// when its input has ended.
func echo(t *testing.T, ended chan<- struct{}) *Server {
	s := New(Options{})
	s.table = append(s.table, route{"POST", "/echo", func(w http.ResponseWriter, c *call) error {
		defer close(ended)
		var body struct{ Tty bool }
		if err := c.decode(&body); err != nil {
			return err
		}
		h, err := c.hijack(w, !body.Tty)
		if err != nil {
			return err
		}
		defer h.Close()
		data, err := io.ReadAll(h)
		if err != nil {
			return err
		}
		fmt.Fprintf(frames(h, stdcopy.Stdout), "%s and the end", data)
		return nil
	}, 0})
	return s
}

func TestHijackSpeaksEveryVersionsWords(t *testing.T) {
	for _, tt := range []struct{ path, body, headers, status, media string }{
		{"/v1.41/echo", `{}`, "Upgrade: tcp\r\nConnection: Upgrade\r\n", "101 UPGRADED", "application/vnd.docker.raw-stream"},
		{"/v1.42/echo", `{}`, "Upgrade: tcp\r\nConnection: Upgrade\r\n", "101 UPGRADED", "application/vnd.docker.multiplexed-stream"},
		{"/v1.42/echo", `{"Tty":true}`, "Upgrade: tcp\r\nConnection: Upgrade\r\n", "101 UPGRADED", "application/vnd.docker.raw-stream"},
		{"/v1.42/echo", `{}`, "", "200 OK", "application/vnd.docker.raw-stream"},
	} {
		ended := make(chan struct{})
		conn := serve(t, echo(t, ended))()
		// The first words of the stream come with the request's, as real clients' do.
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%shello", tt.path, tt.headers, len(tt.body), tt.body)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Status != tt.status || resp.Header.Get("Content-Type") != tt.media {
			t.Errorf("%s %s: %s, %s", tt.path, tt.body, resp.Status, resp.Header.Get("Content-Type"))
		}
		if up := resp.Header.Get("Upgrade"); (up == "tcp") != (resp.StatusCode == 101) {
			t.Errorf("%s: Upgrade %q", tt.path, up)
		}
		var from io.Reader = r
		if resp.StatusCode == 200 {
			from = resp.Body
		}
		var out bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, io.Discard, from); err != nil || out.String() != "hello and the end" {
			t.Errorf("%s: %q, %v", tt.path, out.String(), err)
		}
		<-ended
	}
}

func TestVanishedClientIsNoticedBehindItsHalfClose(t *testing.T) {
	s := New(Options{})
	gone := make(chan struct{})
	s.table = append(s.table, route{"POST", "/watch", func(w http.ResponseWriter, c *call) error {
		h, err := c.hijack(w, false)
		if err != nil {
			return err
		}
		defer h.Close()
		h.input(nil)
		h.gone(context.Background())
		close(gone)
		return nil
	}, 0})
	conn := serve(t, s)()
	fmt.Fprintf(conn, "POST /watch HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
		t.Fatal("a client that has closed its half still reads")
	case <-time.After(50 * time.Millisecond):
	}
	conn.Close()
	<-gone
}

func TestClientThatTakesNothingIsGivenUp(t *testing.T) {
	s := New(Options{WriteTimeout: 20 * time.Millisecond})
	failed := make(chan error, 2)
	s.table = append(s.table,
		route{"GET", "/stream", func(w http.ResponseWriter, c *call) error {
			out, err := c.flushed(w, "text/plain")
			for err == nil {
				_, err = out.Write(make([]byte, 64<<10))
			}
			failed <- err
			return nil
		}, 0},
		route{"GET", "/hijack", func(w http.ResponseWriter, c *call) error {
			h, err := c.hijack(w, false)
			for err == nil {
				_, err = h.Write(make([]byte, 64<<10))
			}
			failed <- err
			return h.Close()
		}, 0})
	dial := serve(t, s)
	for _, path := range []string{"/stream", "/hijack"} {
		fmt.Fprintf(dial(), "GET %s HTTP/1.1\r\nHost: d\r\n\r\n", path)
		if err := <-failed; !strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFramesCarryEveryByte(t *testing.T) {
	var wire, out, errs bytes.Buffer
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	for _, p := range [][]byte{data, nil, data[:1]} {
		if n, err := frames(&wire, stdcopy.Stdout).Write(p); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(p), err)
		}
	}
	if _, err := frames(&wire, stdcopy.Stderr).Write([]byte("e")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdcopy.StdCopy(&out, &errs, &wire); err != nil {
		t.Fatal(err)
	}
	if out.Len() != len(data)+1 || errs.String() != "e" {
		t.Errorf("%d bytes and %q came out", out.Len(), errs.String())
	}
}
