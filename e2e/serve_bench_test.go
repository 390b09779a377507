package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
// medians in milliseconds, how many times dockerd takes as long, and the processor time of either engine
// without the client, where cgroups can be written:
//
//	go test -run '^$' -bench Engines -benchtime 20x
func BenchmarkEngines(b *testing.B) {
	dockerd, den := newDockerd(b), newDen(b).serve("privileged")
	turns := &turns{engines: [2]*engine{dockerd, den}}
	for i, e := range turns.engines {
		e.must(b, "docker run -d --name idle --network none small sleep 100000")
		turns.cpu[i] = e.accounted(b)
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
			turns.take(b, func(e *engine) time.Duration {
				start := time.Now()
				e.must(b, work.command)
				return time.Since(start)
			})
		})
	}
	b.Run("exec over the API", func(b *testing.B) {
		turns.take(b, func(e *engine) time.Duration { return e.execByAPI(b, "idle") })
	})
}

// turns are those of two engines, dockerd first.
type turns struct {
	engines [2]*engine
	cpu     [2]func() time.Duration // nil where it cannot be measured
}

// take measures b.N rounds and reports what they took.
func (x *turns) take(b *testing.B, work func(*engine) time.Duration) {
	b.Helper()
	var took [2][]time.Duration
	var used [2]time.Duration
	for range b.N {
		for i, e := range x.engines {
			var before time.Duration
			if x.cpu[i] != nil {
				before = x.cpu[i]()
			}
			took[i] = append(took[i], work(e))
			if x.cpu[i] != nil {
				used[i] += x.cpu[i]() - before
			}
		}
	}
	theirs, ours := median(took[0]), median(took[1])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(theirs.Microseconds())/1000, "dockerd-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000, "den-ms")
	b.ReportMetric(float64(theirs)/float64(ours), "times")
	if x.cpu[0] != nil && x.cpu[1] != nil {
		b.ReportMetric(float64(used[0].Microseconds())/1000/float64(b.N), "dockerd-cpu-ms")
		b.ReportMetric(float64(used[1].Microseconds())/1000/float64(b.N), "den-cpu-ms")
	}
}

// accounted puts the engine's processes, and so those that they will start, into a cgroup that counts
// their processor time; nil where there can be none.
func (e *engine) accounted(t testing.TB) func() time.Duration {
	t.Helper()
	root := "/sys/fs/cgroup/cpuacct"
	read := func(dir string) time.Duration {
		b, _ := os.ReadFile(dir + "/cpuacct.usage") // nanoseconds
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(n)
	}
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
		read = func(dir string) time.Duration {
			b, _ := os.ReadFile(dir + "/cpu.stat")
			var usec int64
			_, _ = fmt.Sscanf(string(b), "usage_usec %d", &usec)
			return time.Duration(usec) * time.Microsecond
		}
	}
	dir, err := os.MkdirTemp(root, "den-bench-")
	if err != nil {
		return nil
	}
	move := func(to string, pids []string) {
		for _, pid := range pids {
			_ = os.WriteFile(to+"/cgroup.procs", []byte(pid), 0) // it may have ended
		}
	}
	t.Cleanup(func() {
		b, _ := os.ReadFile(dir + "/cgroup.procs")
		move(root, strings.Fields(string(b)))
		_ = os.Remove(dir)
	})
	move(dir, descendants(strconv.Itoa(e.pid)))
	return func() time.Duration { return read(dir) }
}

// descendants are pid and those that came of it.
func descendants(pid string) []string {
	all := []string{pid}
	tasks, _ := filepath.Glob("/proc/" + pid + "/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, child := range strings.Fields(string(b)) {
			all = append(all, descendants(child)...)
		}
	}
	return all
}

func median[T cmp.Ordered](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// client talks to the engine without docker's CLI.
func (e *engine) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(e.host, "unix://"))
	}}}
}

// execByAPI times one program in a container over one connection: create, start and the end of its output.
func (e *engine) execByAPI(t testing.TB, container string) time.Duration {
	t.Helper()
	c := e.client()
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
	res, err := c.Get("http://docker/_ping") // the connection
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	start := time.Now()
	made := post("/v1.41/containers/"+container+"/exec", `{"AttachStdout":true,"Cmd":["echo","said"]}`)
	id := strings.Split(made, `"`)[3]
	if out := post("/v1.41/exec/"+id+"/start", `{"Detach":false,"Tty":true}`); !strings.Contains(out, "said") {
		t.Fatalf("%s: %q", e.name, out)
	}
	return time.Since(start)
}

// logBytes reads a container's log over the API and counts the program's bytes in it.
func (e *engine) logBytes(t testing.TB, container string) (sum int64) {
	t.Helper()
	c := e.client()
	defer c.CloseIdleConnections()
	res, err := c.Get("http://docker/v1.41/containers/" + container + "/logs?stdout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r := bufio.NewReaderSize(res.Body, 1<<20)
	for head := make([]byte, 8); ; { // the stream, and how many bytes of it follow
		if _, err := io.ReadFull(r, head); errors.Is(err, io.EOF) {
			return sum
		} else if err != nil {
			t.Fatal(err)
		}
		n, err := r.Discard(int(binary.BigEndian.Uint32(head[4:])))
		if sum += int64(n); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkLogs measures what a program's output comes through with, in MiB/s: written and kept, written
// while a client watches, and read again; every byte has to be there.
func BenchmarkLogs(b *testing.B) {
	dockerd, den := newDockerd(b), newDen(b).serve("privileged")
	const mib = 200
	// The program writes as fast as anybody can: it sends a file to its output ten times.
	for _, e := range []*engine{dockerd, den} {
		e.must(b, fmt.Sprintf(`yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c %d >lines
docker create --name talks --network none small sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do cat /lines; done'
docker cp -q lines talks:/lines && docker commit talks lines && docker rm talks && rm lines`, mib<<20/10))
	}
	program := "--network none lines"
	b.Run("all", func(b *testing.B) {
		rates := map[string][]float64{}
		measure := func(e *engine, name string, work func() int64) {
			start := time.Now()
			if got := work(); got != mib<<20 {
				b.Fatalf("%s: %s: %d bytes of %d", e.name, name, got, mib<<20)
			}
			key := strings.Replace(e.name, "privileged", "den", 1) + "-" + name + "-MiB/s"
			rates[key] = append(rates[key], mib/time.Since(start).Seconds())
		}
		counted := func(e *engine, command string) int64 {
			n, err := strconv.ParseInt(strings.TrimSpace(e.must(b, command)), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
		for range b.N {
			for _, e := range []*engine{dockerd, den} {
				measure(e, "kept", func() int64 {
					return counted(e, fmt.Sprintf("docker run -d --name talks %s >/dev/null && docker wait talks >/dev/null && echo %d", program, mib<<20))
				})
				measure(e, "read", func() int64 { return e.logBytes(b, "talks") })
				measure(e, "read-by-CLI", func() int64 { return counted(e, "docker logs talks | wc -c") })
				e.must(b, "docker rm talks")
				measure(e, "watched", func() int64 { return counted(e, "docker run --rm "+program+" | wc -c") })
			}
		}
		b.ReportMetric(0, "ns/op")
		for key, list := range rates {
			b.ReportMetric(median(list), key)
		}
	})
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
			time.Sleep(resting)
			empty := e.memory(b)
			for i := range idle {
				e.must(b, fmt.Sprintf("docker run -d --name idle%d --network none small sleep 100000", i))
			}
			time.Sleep(resting)
			full := e.memory(b)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(median(first).Microseconds())/1000, "first-ping-ms")
			b.ReportMetric(float64(empty.rss)/1024, "idle-RSS-MiB")
			b.ReportMetric(float64(empty.private)/1024, "idle-anonymous-MiB")
			b.ReportMetric(float64(full.private-empty.private)/1024/idle, "MiB/container")
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

// resting is more than what den serve waits for until it gives memory back.
const resting = 4 * time.Second

// A use is memory in KiB: what is resident, and what of it belongs to no file, so that only this
// process has it.
type use struct{ rss, private int }

// memory sums that of den serve and what it has started of itself, holders, sentries and network processes
// among them, but not of what runs in the containers.
func (e *engine) memory(t testing.TB) (sum use) {
	t.Helper()
	for _, pid := range descendants(strconv.Itoa(e.pid)) {
		exe, _ := os.Readlink("/proc/" + pid + "/exe")
		if exe != env.den && !strings.HasPrefix(exe, "/memfd:den") {
			continue
		}
		b, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup") // it may have ended
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			n, _ := strconv.Atoi(f[1])
			switch f[0] {
			case "Rss:":
				sum.rss += n
			case "Anonymous:":
				sum.private += n
			}
		}
	}
	return sum
}
