package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkEngines compares den serve with dockerd, taking turns, through docker's own CLI. It prints
// medians in milliseconds and how many times dockerd takes as long:
//
//	go test -run '^$' -bench Engines -benchtime 20x
func BenchmarkEngines(b *testing.B) {
	dockerd, den := newDockerd(b), newDen(b).serve("privileged")
	for _, e := range []*engine{dockerd, den} {
		e.must(b, "docker run -d --name idle --network none small sleep 100000")
	}
	parallel := func(network string) string {
		return "for i in 1 2 3 4 5 6 7 8 9 10; do docker run --rm " + network + " small true & done; wait"
	}
	for _, work := range []struct{ name, command string }{
		{"run without network", "docker run --rm --network none small true"},
		{"run on the bridge", "docker run --rm small true"},
		{"run on the host's network", "docker run --rm --network host small true"},
		{"exec", "docker exec idle true"},
		{"ten at once without network", parallel("--network none")},
		{"ten at once on the bridge", parallel("")},
		{"the CLI alone", "docker --version"},
	} {
		b.Run(work.name, func(b *testing.B) {
			var took [2][]time.Duration
			for range b.N {
				for i, e := range []*engine{dockerd, den} {
					start := time.Now()
					e.must(b, work.command)
					took[i] = append(took[i], time.Since(start))
				}
			}
			report(b, took)
		})
	}
	b.Run("exec over the API", func(b *testing.B) {
		var took [2][]time.Duration
		for range b.N {
			for i, e := range []*engine{dockerd, den} {
				took[i] = append(took[i], e.execByAPI(b, "idle"))
			}
		}
		report(b, took)
	})
}

func report(b *testing.B, took [2][]time.Duration) {
	b.Helper()
	theirs, ours := median(took[0]), median(took[1])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(theirs.Microseconds())/1000, "dockerd-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000, "den-ms")
	b.ReportMetric(float64(theirs)/float64(ours), "times")
}

func median[T cmp.Ordered](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// execByAPI times one program in a container over one connection: create, start and the end of its output.
func (e *engine) execByAPI(t testing.TB, container string) time.Duration {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(e.host, "unix://"))
	}}}
	defer c.CloseIdleConnections()
	post := func(path, body string) string {
		res, err := c.Post("http://docker"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode >= 300 {
			t.Fatal(e.name, path, b.String())
		}
		return b.String()
	}
	if _, err := c.Get("http://docker/_ping"); err != nil { // the connection
		t.Fatal(err)
	}
	start := time.Now()
	made := post("/v1.41/containers/"+container+"/exec", `{"AttachStdout":true,"Cmd":["echo","said"]}`)
	id := strings.Split(made, `"`)[3]
	if out := post("/v1.41/exec/"+id+"/start", `{"Detach":false,"Tty":true}`); !strings.Contains(out, "said") {
		t.Fatalf("%s: %q", e.name, out)
	}
	return time.Since(start)
}

// BenchmarkLogs measures what a program's output comes through with: written, kept, and read again.
func BenchmarkLogs(b *testing.B) {
	dockerd, den := newDockerd(b), newDen(b).serve("privileged")
	const mib = 200
	for _, e := range []*engine{dockerd, den} {
		b.Run(e.name, func(b *testing.B) {
			for range b.N {
				start := time.Now()
				e.must(b, fmt.Sprintf("docker run --name talks --network none small sh -c 'yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c %d' >/dev/null", mib<<20))
				written := time.Since(start)
				got, err := strconv.Atoi(strings.TrimSpace(e.must(b, "docker logs talks | wc -c")))
				if err != nil || got != mib<<20 {
					b.Fatalf("%d bytes of %d are left, %v", got, mib<<20, err)
				}
				e.must(b, "docker rm talks")
				b.ReportMetric(mib/written.Seconds(), "MiB/s")
				b.ReportMetric(mib/(time.Since(start)-written).Seconds(), "read-MiB/s")
			}
		})
	}
}

// BenchmarkServing measures how soon den serve answers, and what it holds when nothing happens, with and
// without containers.
func BenchmarkServing(b *testing.B) {
	for name, d := range map[string]*den{"privileged": newDen(b), "userns": newPlainDen(b), "sentry": newSentryDen(b)} {
		b.Run(name, func(b *testing.B) {
			var first []time.Duration
			for range 10 {
				first = append(first, d.firstPing(b))
			}
			e := d.serve(name)
			const idle = 10
			empty := privateKiB(b, d)
			for i := range idle {
				e.must(b, fmt.Sprintf("docker run -d --name idle%d --network none small sleep 100000", i))
			}
			full := privateKiB(b, d)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(median(first).Microseconds())/1000, "first-ping-ms")
			b.ReportMetric(float64(empty)/1024, "idle-MiB")
			b.ReportMetric(float64(full-empty)/1024/idle, "MiB/container")
			e.must(b, "docker rm -f $(docker ps -aq)")
		})
	}
}

// firstPing is the time from the start of den serve to its first answer.
func (d *den) firstPing(t testing.TB) time.Duration {
	t.Helper()
	sock := filepath.Join(d.home, "ping.sock")
	_ = os.Remove(sock)
	cmd := d.command(t.Context(), "serve", "-H", "unix://"+sock)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }()
	for {
		c, err := net.Dial("unix", sock)
		if err != nil {
			if time.Since(start) > time.Minute {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /_ping HTTP/1.0\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
}

// privateKiB sums the private memory of the den processes of d's store, holders and network processes among
// them, but not of what runs in the containers.
func privateKiB(t testing.TB, d *den) (sum int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		environ, err := os.ReadFile(p + "/environ")
		exe, _ := os.Readlink(p + "/exe")
		ours := exe == env.den || strings.HasPrefix(exe, "/memfd:den")
		if err != nil || !ours || !bytes.Contains(environ, []byte(d.home)) && exe == env.den {
			continue
		}
		b, err := os.ReadFile(p + "/smaps_rollup")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && (f[0] == "Private_Dirty:" || f[0] == "Private_Clean:") {
				n, _ := strconv.Atoi(f[1])
				sum += n
			}
		}
	}
	return sum
}
