package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/client"
)

func server(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
	c, err := client.New(client.Options{Host: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRefusalHasTheDaemonsWordsAndAClass(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"message":"No such container: x"}`)
	})
	err := c.Call(t.Context(), client.Request{Method: "GET", Path: "/containers/x/json"}, nil)
	if !errdefs.IsNotFound(err) || err.Error() != "Error response from daemon: No such container: x" {
		t.Errorf("%v", err)
	}
}

func TestBodiesAreJSONOrBytes(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode([]string{r.Method, r.URL.String(), r.Header.Get("Content-Type"), string(b)})
	})
	for _, x := range []struct {
		body any
		want string
	}{
		{map[string]int{"a": 1}, `POST /p?q=1 application/json {"a":1}`},
		{strings.NewReader("tar"), "POST /p?q=1 application/x-tar tar"},
		{nil, "POST /p?q=1  "},
	} {
		var got []string
		if err := c.Call(t.Context(), client.Request{Method: "POST", Path: "/p", Query: map[string][]string{"q": {"1"}}, Body: x.body}, &got); err != nil || strings.Join(got, " ") != x.want {
			t.Errorf("%q, %v, want %q", got, err, x.want)
		}
	}
}

func TestStreamGoesBothWays(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "tcp" {
			t.Error("no Upgrade")
		}
		conn, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		in, err := io.ReadAll(b)
		if err != nil {
			t.Error(err)
		}
		_, _ = conn.Write([]byte{1, 0, 0, 0, 0, 0, 0, byte(len(in))})
		_, _ = conn.Write(in)
		_, _ = conn.Write([]byte("\x02\x00\x00\x00\x00\x00\x00\x03err"))
	})
	s, err := c.Hijack(t.Context(), client.Request{Method: "POST", Path: "/containers/x/attach"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if err := s.Copy(false, &stdout, &stderr); err != nil || stdout.String() != "hello" || stderr.String() != "err" {
		t.Errorf("%q %q %v", stdout.String(), stderr.String(), err)
	}
}

func TestDaemonThatIsNotThereIsSaid(t *testing.T) {
	c, err := client.New(client.Options{Host: "unix://" + filepath.Join(t.TempDir(), "none.sock")})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Call(context.Background(), client.Request{Method: "GET", Path: "/_ping"}, nil)
	if err == nil || !strings.Contains(err.Error(), "cannot connect to the Docker daemon at unix://") {
		t.Errorf("%v", err)
	}
	if _, err := client.New(client.Options{Host: "ssh://x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ssh: %v", err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x02ab\x02\x00\x00\x00\x00\x00\x00\x01c"))
	f.Add([]byte("\x09\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, err bytes.Buffer
		if e := client.CopyFrames(bytes.NewReader(in), &out, &err); e == nil && out.Len()+err.Len() > len(in) {
			t.Error("more came out than went in")
		} else if errors.Is(e, io.EOF) {
			t.Error("the end of the stream is an error")
		}
	})
}
