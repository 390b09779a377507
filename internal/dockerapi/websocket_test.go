package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"den/internal/engine"
)

// wsFrame is a frame as a client sends it.
func wsFrame(first byte, payload string) []byte {
	mask := [4]byte{1, 2, 3, 4}
	b := []byte{first}
	if n := len(payload); n < 126 {
		b = append(b, 0x80|byte(n))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	}
	b = append(b, mask[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^mask[i&3])
	}
	return b
}

// wsNext reads a frame of a server.
func wsNext(t *testing.T, r io.Reader) (op byte, payload string) {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	if n == 126 {
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			t.Fatal(err)
		}
		n = int(binary.BigEndian.Uint16(size[:]))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}

const wsHead = "Host: d\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// wsDial attaches.
func wsDial(t *testing.T, f *fake, path string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	conn := serve(t, New(Options{Engine: f}))()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\n%s\r\n", path, wsHead)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The key's answer is that of RFC 6455, section 1.3.
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	return conn, r
}

func TestWebsocketCarriesTheStreams(t *testing.T) {
	f := &fake{attachment: &fakeAttachment{copy: func(_ context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
		data, err := io.ReadAll(io.LimitReader(stdin, 9))
		_, werr := fmt.Fprintf(stdout, "got %s", data)
		_, eerr := io.WriteString(stderr, strings.Repeat("e", 300))
		return errors.Join(err, werr, eerr)
	}}}
	for _, tt := range []struct {
		path string
		kind byte
	}{{"/v1.27/containers/c/attach/ws?stream=1", wsText}, {"/containers/c/attach/ws?stream=1&stdin=1&stdout=1&stderr=1", wsBinary}} {
		conn, r := wsDial(t, f, tt.path)
		// One message in pieces, with a ping in between and no end of input.
		for _, frame := range [][]byte{wsFrame(wsText, "abc"), wsFrame(0x80|wsPing, "hello"), wsFrame(wsContinuation, "def"), wsFrame(0x80, "ghi")} {
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []struct {
			op      byte
			payload string
		}{
			{wsPong, "hello"}, {tt.kind, "got abcdefghi"}, {tt.kind, strings.Repeat("e", 300)}, {wsClose, "\x03\xe8"},
		} {
			if op, payload := wsNext(t, r); op != 0x80|want.op || payload != want.payload {
				t.Errorf("%s: frame %x %q, want %x %q", tt.path, op, payload, want.op, want.payload)
			}
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%s: then %q, %v", tt.path, rest, err)
		}
	}
}

func TestWebsocketThatIsClosedOrBrokenEndsTheAttachment(t *testing.T) {
	for name, tt := range map[string]struct {
		frame  []byte
		answer string
	}{
		"closed":         {wsFrame(0x80|wsClose, "\x03\xe9bye"), "\x03\xe9"},
		"not masked":     {[]byte{0x82, 1, 'x'}, "\x03\xea"},
		"reserved bits":  {wsFrame(0xf2, "x"), "\x03\xea"},
		"no beginning":   {wsFrame(0x80, "x"), "\x03\xea"},
		"unknown opcode": {wsFrame(0x83, "x"), "\x03\xea"},
		"long ping":      {wsFrame(0x80|wsPing, strings.Repeat("x", 126)), "\x03\xea"},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			f := &fake{attachment: &fakeAttachment{copy: func(ctx context.Context, stdin io.Reader, _, _ io.Writer) error {
				_, err := io.ReadAll(stdin) // it ends, too
				<-ctx.Done()
				ended <- err
				return nil
			}}}
			conn, r := wsDial(t, f, "/containers/c/attach/ws?stream=1&stdin=1&stdout=1")
			if _, err := conn.Write(tt.frame); err != nil {
				t.Fatal(err)
			}
			if op, payload := wsNext(t, r); op != 0x80|wsClose || payload != tt.answer {
				t.Errorf("frame %x %q", op, payload)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWebsocketHandshakesThatAreNone(t *testing.T) {
	f := &fake{attachment: &fakeAttachment{}}
	dial := serve(t, New(Options{Engine: f}))
	for _, tt := range []struct {
		head   string
		status int
	}{
		{"Host: d\r\n", 400},
		{strings.Replace(wsHead, "13", "8", 1), 400},
		{strings.Replace(wsHead, "dGhlIHNhbXBsZSBub25jZQ==", "short", 1), 400},
		{wsHead + "Origin: https://evil.example\r\n", 403},
		{wsHead + "Origin: null\r\n", 403},
	} {
		conn := dial()
		fmt.Fprintf(conn, "GET /containers/c/attach/ws HTTP/1.1\r\n%s\r\n", tt.head)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != tt.status {
			t.Errorf("%q: %v, %v", tt.head, resp, err)
		}
	}
	if len(f.calls) > 0 {
		t.Error(f.calls)
	}
	for origin, want := range map[string]bool{"http://d": true, "http://localhost": true, "http://127.0.0.1:8080": true, "http://d.example": false, "%": false} {
		c := &call{Request: &http.Request{Host: "d", Header: http.Header{"Origin": {origin}}}}
		if c.ownOrigin() != want {
			t.Errorf("%s: %v", origin, !want)
		}
	}
}

func FuzzWebsocketFrames(f *testing.F) {
	f.Add(bytes.Join([][]byte{wsFrame(wsText, "abc"), wsFrame(0x80|wsPing, "hello"), wsFrame(0x80, "ghi")}, nil))
	f.Add([]byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &wsReader{r: bufio.NewReader(bytes.NewReader(data)), answer: func(op byte, payload []byte) error {
			if len(payload) > 125 || op&8 == 0 {
				t.Errorf("answers %x with %d bytes", op, len(payload))
			}
			return nil
		}}
		if n, err := io.Copy(io.Discard, r); n > int64(len(data)) {
			t.Errorf("%d bytes of %d, %v", n, len(data), err)
		}
	})
}

func TestDetachKeys(t *testing.T) {
	for text, want := range map[string]string{
		"": "\x10\x11", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-A,x,ctrl-@,ctrl-[,ctrl-_": "\x01x\x00\x1b\x1f", "DEL": "\x7f",
		"ctrl-": "-", "ctrl-1": "-", "ab": "-", ",": "-", "ctrl-ab": "-", strings.Repeat("a,", 100) + "a": "-",
	} {
		keys, ok := parseDetachKeys(text)
		if !ok {
			keys = []byte("-")
		}
		if string(keys) != want {
			t.Errorf("%.20q: %q, want %q", text, keys, want)
		}
	}
	for _, tt := range []struct {
		typed    []string
		want     string
		detached bool
	}{
		{[]string{"hello"}, "hello", false},
		{[]string{"hello aab", "never"}, "hello ", true},
		{[]string{"x", "a", "a", "b"}, "x", true},
		{[]string{"aaab"}, "a", true}, // its end is the sequence
		{[]string{"aaxab", "aa"}, "aaxabaa", false},
		{nil, "", false},
	} {
		var rs []io.Reader
		for _, s := range tt.typed {
			rs = append(rs, strings.NewReader(s))
		}
		for size := 1; size < 4; size++ {
			k := &keyReader{r: io.MultiReader(rs...), keys: []byte("aab")}
			var got []byte
			var err error
			for p := make([]byte, size); err == nil; {
				var n int
				n, err = k.Read(p)
				got = append(got, p[:n]...)
			}
			if string(got) != tt.want || k.detached != tt.detached || !errors.Is(err, io.EOF) {
				t.Errorf("%q by %d: %q, %v, %v", tt.typed, size, got, k.detached, err)
			}
			rs = nil
			for _, s := range tt.typed {
				rs = append(rs, strings.NewReader(s))
			}
		}
	}
}

// A client that types its keys is told the end, and the program keeps its input.
func TestDetachKeysEndTheConnectionAndNothingElse(t *testing.T) {
	still := make(chan string, 1)
	f := &fake{
		attachment: &fakeAttachment{tty: true, copy: func(ctx context.Context, stdin io.Reader, _, _ io.Writer) error {
			go func() { _, _ = io.Copy(io.Discard, stdin) }()
			<-ctx.Done()
			return ctx.Err()
		}},
		execs: map[string]*engine.Exec{"x": {ID: "x", ContainerID: "c", Config: engine.ExecConfig{TTY: true, AttachStdin: true, AttachStdout: true, DetachKeys: "ctrl-x,x"}}},
	}
	ended := make(chan struct{})
	f.exec = func(s engine.ExecStreams) error {
		b := make([]byte, 3)
		_, err := io.ReadFull(s.Stdin, b)
		still <- string(b)
		<-ended // it goes on without its client
		return err
	}
	dial := serve(t, New(Options{Engine: f}))
	for _, tt := range []struct{ path, body, typed string }{
		{"/containers/c/attach?stdin=1&stdout=1&stream=1&detachKeys=ctrl-d", "", "abc\x04never"},
		{"/exec/x/start", `{"Tty":true}`, "abc\x18xnever"},
	} {
		conn := dial()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", tt.path, len(tt.body), tt.body)
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		if _, err := io.WriteString(conn, tt.typed); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%s: %q, %v", tt.path, rest, err)
		}
		conn.Close()
	}
	if got := <-still; got != "abc" {
		t.Errorf("the program got %q", got)
	}
	close(ended)
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := strings.Join(f.calls, "|"); !strings.Contains(got, "detached c ") || !strings.Contains(got, "detached c x") {
		t.Errorf("calls are %q", got)
	}
	conn := dial()
	fmt.Fprintf(conn, "POST /containers/c/attach?detachKeys=oops HTTP/1.1\r\nHost: d\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != 400 {
		t.Error(resp, err)
	}
}
