package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dial connects to the engine's socket.
func (e *engine) dial(t testing.TB) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(e.host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// open counts the files that the engine has open.
func (e *engine) open(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// residentBytes is the engine's memory.
func (e *engine) residentBytes(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", e.pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// idleClients is how many connections an engine has to bear, and clientBytes what each may cost it.
const (
	idleClients = 10_000
	clientBytes = 24 << 10
)

// Clients that connect, ask once and keep quiet cost a little memory, and hold up nobody.
func TestTenThousandIdleConnections(t *testing.T) {
	t.Parallel()
	needRoot(t)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max < idleClients+1000 {
		t.Skipf("needs %d open files (ulimit -Hn is %d)", idleClients+1000, limit.Max)
	}
	e := newDen(t).serve("privileged")
	files, memory := e.open(t), e.residentBytes(t)
	conns := make([]net.Conn, idleClients)
	for i := range conns {
		c := e.dial(t)
		conns[i] = c
		if i%2 == 0 { // the others say nothing at all
			continue
		}
		if _, err := io.WriteString(c, "HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), &http.Request{Method: "HEAD"}); err != nil || resp.StatusCode != 200 {
			t.Fatalf("connection %d: %v, %v", i, resp, err)
		}
	}
	if grown := e.residentBytes(t) - memory; grown > idleClients*clientBytes {
		t.Errorf("%d connections take %d MiB", idleClients, grown>>20)
	}
	equal(t, "a container meanwhile", "hi\n", e.must(t, "docker run --rm small echo hi"))
	for _, c := range conns {
		c.Close()
	}
	e.eventually(t, "files are closed", func() bool { return e.open(t) <= files+10 })
}

func (e *engine) eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in a minute not: ", what)
		}
	}
}

// Clients that go away in the middle of any stream leave nothing open, and the container as it was.
func TestClientsThatVanishMidStream(t *testing.T) {
	t.Parallel()
	needRoot(t)
	e := newDen(t).serve("privileged")
	e.must(t, "docker run -dit --name busy small sh -c 'while :; do echo line; sleep 0.01; done'")
	// A sleep comes and goes.
	processes := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(e.must(t, "docker exec busy sh -c 'ls /proc 2>/dev/null | grep -c \"^[0-9]\"'")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := processes()
	files := e.open(t)
	upgrade := "Upgrade: tcp\r\nConnection: Upgrade\r\n"
	for range 20 {
		for _, request := range []string{
			"GET /events HTTP/1.1\r\nHost: d\r\n\r\n",
			"GET /containers/busy/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n",
			"GET /containers/busy/stats HTTP/1.1\r\nHost: d\r\n\r\n",
			"GET /containers/busy/export HTTP/1.1\r\nHost: d\r\n\r\n",
			"GET /containers/busy/archive?path=/ HTTP/1.1\r\nHost: d\r\n\r\n",
			"GET /images/small/get HTTP/1.1\r\nHost: d\r\n\r\n",
			"POST /containers/busy/attach?stream=1&stdout=1&stdin=1 HTTP/1.1\r\nHost: d\r\n" + upgrade + "\r\n",
			"POST /containers/busy/wait HTTP/1.1\r\nHost: d\r\n\r\n",
			"PUT /containers/busy/archive?path=/tmp HTTP/1.1\r\nHost: d\r\nContent-Length: 100000\r\n\r\nhalf",
			"POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: 100000\r\n\r\nhalf",
			"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{\"Image\":",
		} {
			c := e.dial(t)
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(request, "PUT") && !strings.Contains(request, "100000") {
				if _, err := c.Read(make([]byte, 64)); err != nil {
					t.Errorf("%s: %v", request, err)
				}
			}
			c.Close()
		}
	}
	e.eventually(t, "files are closed", func() bool { return e.open(t) <= files+10 })
	e.eventually(t, "the container has the processes that it had", func() bool { return processes() <= before+1 })
	e.must(t, "docker rm -f busy")
}

// A container that changes a path while files are copied to and from it reaches nothing outside.
func TestCopiesAreNotLedOutOfTheContainer(t *testing.T) {
	t.Parallel()
	everyServe(t, func(t *testing.T, e *engine) {
		outside := filepath.Join(e.dir, "outside")
		if err := os.Mkdir(outside, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		up := strings.Repeat("../", 40)
		e.must(t, "docker run -d --name racer small sh -c 'while :; do mkdir -p /d; rm -rf /d; ln -sfn "+outside+" /d; rm -f /d; ln -sfn "+up+outside+" /d; rm -f /d; done'")
		evil := tarBytes(t, files{"evil": "from the client", "up/": ""})
		ask := func(method, path string, body []byte) []byte {
			r, err := http.NewRequestWithContext(t.Context(), method, "http://d"+path, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			c := e.dial(t)
			defer c.Close()
			r.Close = true
			if err := r.Write(c); err != nil {
				return nil // it was refused before it was read
			}
			data, _ := io.ReadAll(c)
			return data
		}
		for range 100 {
			for _, path := range []string{"/d", "/d/.", "/d/../d"} {
				ask("PUT", "/containers/racer/archive?path="+path, evil)
			}
			for _, path := range []string{"/d/secret", "/d/.", "/d", up + outside + "/secret", "/proc/1/root" + outside + "/secret"} {
				if got := ask("GET", "/containers/racer/archive?path="+path, nil); bytes.Contains(got, []byte("of the host")) {
					t.Fatalf("%s gives the host's file", path)
				}
			}
		}
		e.must(t, "docker rm -f racer")
		list, err := os.ReadDir(outside)
		if err != nil || len(list) != 1 {
			t.Errorf("outside are %v, %v", list, err)
		}
	})
}
