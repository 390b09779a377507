package socket_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/socket"
)

func TestAddressesAreReadAsDockerdReadsThem(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/d.sock":                  "unix:///run/d.sock",
		"unix://":                             "unix:///var/run/docker.sock",
		"tcp://0.0.0.0:2375":                  "tcp://0.0.0.0:2375",
		"tcp://":                              "tcp://127.0.0.1:2376",
		"tcp://:5":                            "tcp://127.0.0.1:5",
		"0.0.0.0:1":                           "tcp://0.0.0.0:1",
		"tcp://[::1]:7/":                      "tcp://[::1]:7",
		"tcp://[::]":                          "tcp://[::]:2376",
		"fd://":                               "fd://",
		"fd://*":                              "fd://",
		"fd://4":                              "fd://4",
		" tcp://localhost:99 ":                "tcp://localhost:99",
		"unix:///a/../b/./d.sock":             "unix:///b/d.sock",
		"npipe:////./pipe/docker":             "",
		"tcp://h:99999":                       "",
		"tcp://a/b:1":                         "",
		"unix://relative":                     "",
		"unix:///" + strings.Repeat("x", 108): "",
		"fd://x":                              "",
		"unix:///a\x00b":                      "",
	} {
		a, err := socket.Parse(in, socket.TLSPort)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v, %v, want an invalid argument", in, a, err)
			}
		} else if err != nil || a.String() != want {
			t.Errorf("%q: %v, %v, want %s", in, a, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"unix:///x", "tcp://[::1]:2", "fd://3", "a:b:c", "tcp://%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := socket.Parse(s, socket.PlainPort)
		if err != nil {
			return
		}
		if again, err := socket.Parse(a.String(), "1"); err != nil || again != a {
			t.Errorf("%q is %v, and that is %v, %v", s, a, again, err)
		}
	})
}

func listen(t *testing.T, path string) (*socket.Listener, error) {
	t.Helper()
	ls, err := socket.Listen(context.Background(), socket.Address{Network: socket.Unix, Name: path}, socket.Options{GID: -1})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { ls[0].Close() })
	return ls[0], nil
}

func TestSocketOfWhoIsGoneIsReplacedAndOfOthersIsNot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	// Somebody without a lock listens.
	if _, err := listen(t, path); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "somebody else answers") {
		t.Errorf("with a listener: %v", err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err := listen(t, path)
	if err != nil {
		t.Fatalf("with a stale socket: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	if _, err := listen(t, path); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "another den") {
		t.Errorf("with a den: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Close the socket is there: %v", err)
	}
	next, err := listen(t, path)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	// The den before takes long to end, and closes all that it had once more.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the next one's socket is gone: %v", err)
	} else {
		c.Close()
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".den-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFileThatIsNoSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("listen on a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the file: %q, %v", b, err)
	}
}

// Hand and Inherit are for execve; in one process they show that the connection which
// waits is not lost, and that the lock goes along.
func TestHandedListenerServesWhoConnectedBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	l, err := listen(t, path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Hand([]*socket.Listener{l}); err != nil {
		t.Fatal(err)
	}
	l.Listener.Close() // as execve does
	all, err := socket.Inherit()
	if err != nil || len(all) != 1 || all[0].Address.Name != path {
		t.Fatalf("inherited %v, %v", all, err)
	}
	defer all[0].Close()
	if again, err := socket.Inherit(); err != nil || again != nil {
		t.Errorf("a second time: %v, %v", again, err)
	}
	s, err := all[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if line, err := bufio.NewReader(s).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if _, err := listen(t, path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the lock did not go along: %v", err)
	}
}

func TestTLSAtAPlainSocketIsToldSo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "plain") })}
	defer s.Close()
	go s.Serve(socket.Plain(l, func(remote string) { said <- remote }))
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := tls.Client(c, &tls.Config{ServerName: "docker"}).Handshake(); err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("TLS client: %v", err)
	}
	if remote := <-said; remote != c.LocalAddr().String() {
		t.Errorf("said of %s, want %s", remote, c.LocalAddr())
	}
	r, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "plain" {
		t.Errorf("HTTP client: %q, %v", b, err)
	}
}

func TestCertificatesHaveTheLayoutOfDind(t *testing.T) {
	dir := t.TempDir()
	files, err := socket.Certificates(dir, append(socket.Names("DNS:extra.example,IP:10.1.2.3,email:x@y"), "docker"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca/cert.pem", "ca/key.pem", "server/ca.pem", "server/cert.pem", "server/key.pem", "server/csr.pem", "client/ca.pem", "client/cert.pem", "client/key.pem"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		private := strings.HasSuffix(name, "key.pem") && name != "client/key.pem"
		if mode := fi.Mode().Perm(); private != (mode == 0o600) {
			t.Errorf("%s has mode %o", name, mode)
		}
	}
	handshake(t, dir, files, "docker", "localhost", "extra.example", "10.1.2.3", "127.0.0.1")
	// Again: the authority's key stays, and old clients go on.
	key, err := os.ReadFile(filepath.Join(dir, "ca/key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if files, err = socket.Certificates(dir, []string{"DNS:other"}); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(filepath.Join(dir, "ca/key.pem")); err != nil || string(again) != string(key) {
		t.Errorf("the authority's key has changed: %v", err)
	}
	handshake(t, dir, files, "other")
	// A user's own server: nothing is touched.
	if err := os.Remove(filepath.Join(dir, "ca/key.pem")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Certificates(dir, []string{"DNS:third"}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(files.Cert); err != nil || string(after) != string(before) {
		t.Errorf("the user's certificate was replaced: %v", err)
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Certificates(dir, nil); !errdefs.IsNotFound(err) {
		t.Errorf("an authority without key, and no server: %v", err)
	}
}

// handshake lets the client's certificate meet the server's under each name.
func handshake(t *testing.T, dir string, files socket.ServerFiles, names ...string) {
	t.Helper()
	server, err := files.Config(true)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client/cert.pem"), filepath.Join(dir, "client/key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "client/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(text); block == nil || !roots.AppendCertsFromPEM(text) {
		t.Fatal("client/ca.pem holds no certificate")
	}
	for _, with := range [][]tls.Certificate{{pair}, nil} {
		for _, name := range names {
			a, b := net.Pipe()
			failed := make(chan error, 1)
			go func() { failed <- tls.Server(a, server).Handshake(); a.Close() }()
			c := tls.Client(b, &tls.Config{RootCAs: roots, Certificates: with, ServerName: name})
			err := c.Handshake()
			if err == nil && with == nil {
				_, err = c.Read(make([]byte, 1)) // TLS 1.3 tells after the handshake
			}
			b.Close()
			if e := <-failed; (err == nil && e == nil) != (with != nil) {
				t.Errorf("%s with %d certificates: client %v, server %v", name, len(with), err, e)
			}
		}
	}
}

// Try says what Listen would, and leaves nothing behind.
func TestTryLeavesAPlaceAsItWas(t *testing.T) {
	dir := t.TempDir()
	a := socket.Address{socket.Unix, filepath.Join(dir, "not", "there", "d.sock")}
	if inUse, err := socket.Try(t.Context(), a); inUse || err != nil {
		t.Errorf("a place where nothing is: %t, %v", inUse, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	l, err := socket.Listen(t.Context(), a, socket.Options{GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	if inUse, err := socket.Try(t.Context(), a); !inUse || err != nil {
		t.Errorf("while somebody listens: %t, %v", inUse, err)
	}
	if err := l[0].Close(); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix(socket.Unix, &net.UnixAddr{Name: a.Name, Net: socket.Unix})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if inUse, err := socket.Try(t.Context(), a); inUse || err != nil {
		t.Errorf("at a stale socket: %t, %v", inUse, err)
	}
	if _, err := os.Lstat(a.Name); err != nil {
		t.Error("it took the stale socket away")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "file", "d.sock"), "/proc/self/d.sock"} {
		if _, err := socket.Try(t.Context(), socket.Address{socket.Unix, name}); err == nil {
			t.Errorf("%s is a place for a socket", name)
		}
	}
	if _, err := socket.Try(t.Context(), socket.Address{socket.TCP, "127.0.0.1:0"}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
