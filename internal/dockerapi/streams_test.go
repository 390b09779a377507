package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"den/internal/engine"
	"den/internal/testkit"
)

// post sends a request that takes the connection over and reads the answer's head.
func post(t *testing.T, conn net.Conn, path, body, headers string) (*http.Response, io.Reader) {
	t.Helper()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", path, headers, len(body), body)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == 101 {
		return resp, r
	}
	return resp, resp.Body
}

const upgrade = "Upgrade: tcp\r\nConnection: Upgrade\r\n"

// cat copies stdin to stdout until it ends, and says so on stderr.
func cat(_ context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	if _, err := io.Copy(stdout, stdin); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	if stderr == nil {
		stderr = stdout
	}
	_, err := io.WriteString(stderr, "done")
	return err
}

func TestAttachCarriesBothDirectionsAndHalfClose(t *testing.T) {
	for _, headers := range []string{upgrade, ""} {
		for _, tty := range []bool{false, true} {
			f := &fake{attachment: &fakeAttachment{tty: tty, copy: cat}}
			conn := serve(t, New(Options{Engine: f}))()
			_, r := post(t, conn, "/v1.50/containers/a/attach?stream=1&stdin=1&stdout=1&stderr=1", "", headers)
			fmt.Fprint(conn, "hello")
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			var err error
			if tty {
				_, err = io.Copy(&out, r)
			} else {
				_, err = stdcopy.StdCopy(&out, &errs, r)
			}
			if got := out.String() + errs.String(); err != nil || got != "hellodone" {
				t.Errorf("tty %t, %q: %q, %v", tty, headers, got, err)
			}
		}
	}
}

// docker-py reads what comes together with the head of an answer into a buffer that it never
// looks into again.
func TestHeadIsReadBeforeTheStreamByDockerPy(t *testing.T) {
	f := &fake{attachment: &fakeAttachment{copy: cat}}
	for range 20 {
		conn := serve(t, New(Options{Engine: f}))()
		fmt.Fprintf(conn, "POST /v1.50/containers/a/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\nUser-Agent: docker-sdk-python/7.1.0\r\n%s\r\n", upgrade)
		head := make([]byte, 8<<10)
		n, err := conn.Read(head)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(head[:n], []byte("\r\n\r\n")) {
			t.Fatalf("the first thing to be read is %q", head[:n])
		}
		var out, errs bytes.Buffer
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdcopy.StdCopy(&out, &errs, conn); err != nil || out.String()+errs.String() != "done" {
			t.Fatalf("%q, %q, %v", out.String(), errs.String(), err)
		}
	}
}

func TestAttachEndsWithItsContainerAndItsClient(t *testing.T) {
	f := &fake{}
	dial := serve(t, New(Options{Engine: f}))
	base := testkit.Holding(t)
	for _, tt := range []struct {
		name string
		copy func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error
		act  func(conn *net.UnixConn, r io.Reader)
	}{
		{"the container ends while its client sends", func(context.Context, io.Reader, io.Writer, io.Writer) error { return nil },
			func(conn *net.UnixConn, r io.Reader) {
				fmt.Fprint(conn, "nobody reads this")
				io.Copy(io.Discard, r)
				conn.Close()
			}},
		{"the client vanishes", func(ctx context.Context, _ io.Reader, _, _ io.Writer) error { <-ctx.Done(); return ctx.Err() },
			func(conn *net.UnixConn, _ io.Reader) { conn.Close() }},
		{"the client vanishes while it sends", func(ctx context.Context, _ io.Reader, _, _ io.Writer) error { <-ctx.Done(); return ctx.Err() },
			func(conn *net.UnixConn, _ io.Reader) {
				conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = conn.Write(make([]byte, 1<<20)) // more than anyone takes
				conn.Close()
			}},
		{"the client vanishes while it is sent to", func(_ context.Context, _ io.Reader, stdout, _ io.Writer) error {
			for {
				if _, err := stdout.Write(make([]byte, 1<<16)); err != nil {
					return err
				}
			}
		}, func(conn *net.UnixConn, _ io.Reader) { conn.Close() }},
		{"the client half-closes and vanishes", func(ctx context.Context, _ io.Reader, _, _ io.Writer) error { <-ctx.Done(); return ctx.Err() },
			func(conn *net.UnixConn, _ io.Reader) { conn.CloseWrite(); conn.Close() }},
	} {
		f.attachment = &fakeAttachment{copy: tt.copy}
		conn := dial()
		_, r := post(t, conn, "/containers/a/attach?stream=1&stdin=1&stdout=1", "", upgrade)
		tt.act(conn, r)
		base.Settle(t, 0, tt.name)
	}
}

func TestExecRunsOnItsConnection(t *testing.T) {
	f := &fake{exec: func(s engine.ExecStreams) error {
		return cat(context.Background(), s.Stdin, s.Stdout, s.Stderr)
	}}
	s := New(Options{Engine: f})
	dial := serve(t, s)
	resp, text := ask(t, s, "POST", "/containers/a/exec", `{"AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Cmd":["cat","x"],"Tty":false}`)
	if resp.StatusCode != 201 || text != `{"Id":"e1"}`+"\n" {
		t.Fatalf("status %d, %s", resp.StatusCode, text)
	}
	conn := dial()
	resp, r := post(t, conn, "/v1.42/exec/e1/start", `{"Detach":false,"Tty":false}`, upgrade)
	if resp.StatusCode != 101 || resp.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	fmt.Fprint(conn, "z")
	conn.CloseWrite()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, r); err != nil || out.String() != "z" || errs.String() != "done" {
		t.Errorf("%q, %q, %v", out.String(), errs.String(), err)
	}
	_, text = ask(t, s, "GET", "/exec/e1/json", "")
	for _, want := range []string{`"ExitCode":3`, `"Running":false`, `"entrypoint":"cat"`, `"arguments":["x"]`, `"ContainerID":"a"`, `"OpenStdin":true`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if resp, text := ask(t, s, "POST", "/exec/e1/start", `{}`); resp.StatusCode != 409 {
		t.Errorf("second start: status %d, %s", resp.StatusCode, text)
	}
	if resp, text := ask(t, s, "POST", "/exec/e2/start", `{}`); resp.StatusCode != 404 || message(t, text) != "No such exec instance: e2" {
		t.Errorf("no such exec: status %d, %s", resp.StatusCode, text)
	}
}

func TestExecThatCannotRunSaysSoOnItsStream(t *testing.T) {
	f := &fake{exec: func(engine.ExecStreams) error { return errors.New("exec nonesuch: not found") }}
	s := New(Options{Engine: f})
	ask(t, s, "POST", "/containers/a/exec", `{"AttachStdout":true,"Cmd":"nonesuch"}`)
	_, r := post(t, serve(t, s)(), "/exec/e1/start", `{}`, "")
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, io.Discard, r); err != nil || out.String() != "exec nonesuch: not found\r\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestDetachedExecAnswersWhenItRuns(t *testing.T) {
	f := &fake{exec: func(s engine.ExecStreams) error {
		if !s.Detach || s.Stdout != nil {
			return errors.New("not detached")
		}
		return nil
	}}
	s := New(Options{Engine: f})
	ask(t, s, "POST", "/containers/a/exec", `{"Cmd":["true"]}`)
	if resp, text := ask(t, s, "POST", "/exec/e1/start", `{"Detach":true}`); resp.StatusCode != 200 || text != "" {
		t.Errorf("status %d, %q", resp.StatusCode, text)
	}
}

func TestWaitSendsItsHeadBeforeTheEnd(t *testing.T) {
	f := &fake{waits: make(chan engine.WaitResult, 1)}
	s := New(Options{Engine: f})
	conn := serve(t, s)()
	// The head has arrived when post returns; only then the container ends.
	resp, _ := post(t, conn, "/v1.41/containers/a/wait?condition=removed", "", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	f.waits <- engine.WaitResult{Code: 7}
	data, err := io.ReadAll(resp.Body)
	if err != nil || string(data) != `{"StatusCode":7}`+"\n" {
		t.Errorf("%q, %v", data, err)
	}
	if resp, text := ask(t, s, "POST", "/v1.42/containers/a/wait?condition=never", ""); resp.StatusCode != 400 {
		t.Errorf("status %d, %s", resp.StatusCode, text)
	}
}

func TestClientsThatVanishLeaveNothing(t *testing.T) {
	f := &fake{waits: make(chan engine.WaitResult), events: make(chan engine.Event),
		log:        func(ctx context.Context, _, _ io.Writer) error { <-ctx.Done(); return ctx.Err() },
		samples:    make([]engine.Stats, 1000),
		containers: []*engine.Container{{ID: "a"}},
	}
	for i := range f.samples {
		f.samples[i].Read = time.Unix(int64(i), 0)
	}
	dial := serve(t, New(Options{Engine: f}))
	base := testkit.Holding(t)
	for _, request := range []string{
		"POST /containers/a/wait", "GET /events", "GET /containers/a/logs?follow=1&stdout=1", "GET /containers/a/stats",
	} {
		for range 20 {
			conn := dial()
			fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: d\r\n\r\n", request)
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		base.Settle(t, 0, request)
	}
}

func TestIdleConnectionsCostLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("many descriptors")
	}
	const conns = 400 // each is two descriptors here
	dial := serve(t, New(Options{}))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range conns {
		conn := dial()
		fmt.Fprint(conn, "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / conns
	if each > 48<<10 {
		t.Errorf("an idle connection takes %d bytes", each)
	}
	t.Logf("an idle connection takes %d bytes, this test's own end included", each)
}

func TestLogsAreFramedUnlessThereIsATerminal(t *testing.T) {
	write := func(_ context.Context, stdout, stderr io.Writer) error {
		io.WriteString(stdout, "out")
		if stderr != nil {
			io.WriteString(stderr, "err")
		}
		return nil
	}
	for _, tt := range []struct {
		path, media string
		tty         bool
	}{
		{"/v1.41/containers/a/logs?stdout=1&stderr=True&tail=all", "application/vnd.docker.raw-stream", false},
		{"/v1.42/containers/a/logs?stdout=1&stderr=1&tail=-1&since=0", "application/vnd.docker.multiplexed-stream", false},
		{"/v1.42/containers/a/logs?stdout=true&tail=5&since=1795212578.000000001", "application/vnd.docker.raw-stream", true},
	} {
		f := &fake{log: write, tty: tt.tty}
		resp, text := ask(t, New(Options{Engine: f}), "GET", tt.path, "")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != tt.media {
			t.Errorf("%s: status %d, %s", tt.path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		want := "out"
		if !tt.tty {
			want = "\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x03err"
		}
		if text != want {
			t.Errorf("%s: %q", tt.path, text)
		}
	}
	s := New(Options{Engine: &fake{}})
	for _, query := range []string{"", "?stdout=0", "?stdout=1&since=x", "?stdout=1&until=1.x"} {
		if resp, text := ask(t, s, "GET", "/containers/a/logs"+query, ""); resp.StatusCode != 400 {
			t.Errorf("%s: status %d, %s", query, resp.StatusCode, text)
		}
	}
}
