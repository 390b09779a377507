package e2e

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// noiseImage is an image whose one layer does not compress.
func noiseImage(t *testing.T, mib int) string {
	t.Helper()
	noise := make([]byte, mib<<20)
	_, _ = rand.Read(noise)
	file := filepath.Join(t.TempDir(), "noise.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tarWriter{tar.NewWriter(f)}
	w.add(tar.Header{Name: "noise", Typeflag: tar.TypeReg, Mode: 0o644}, noise)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ref, err := pushBase(fmt.Sprintf("t/noise%d", pushed.Add(1)), containerConfig{Cmd: []string{"none"}}, file)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// faultyRegistry stands before the test registry and answers requests for large blobs itself.
func faultyRegistry(t *testing.T, blob func(w http.ResponseWriter, r *http.Request, forward http.Handler)) string {
	t.Helper()
	to, err := url.Parse("http://" + needRegistry(t))
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(to)
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // clients go away here
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
			blob(w, r, forward)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// A limited writer passes on so many bytes of an answer's body and then reports that it stopped.
type limited struct {
	http.ResponseWriter
	left int64
	full func()
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		n, _ := l.ResponseWriter.Write(p[:l.left])
		l.left = 0
		l.full()
		return n, fmt.Errorf("no more")
	}
	l.left -= int64(len(p))
	return l.ResponseWriter.Write(p)
}

func (l *limited) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func TestKilledPullResumesWhereItStopped(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		const half = 8 << 20
		ref := noiseImage(t, 16)
		reached, gone := make(chan struct{}), make(chan struct{})
		var mu sync.Mutex
		var ranges []string
		host := faultyRegistry(t, func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
			mu.Lock()
			ranges = append(ranges, r.Header.Get("Range"))
			mu.Unlock()
			select {
			case <-gone:
				forward.ServeHTTP(w, r)
				return
			default:
			}
			forward.ServeHTTP(&limited{w, half, func() {
				_ = http.NewResponseController(w).Flush()
				close(reached)
				<-gone
			}}, r)
		})
		name := strings.Replace(ref, env.registry, host, 1)
		cmd := d.command(context.Background(), "pull", name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-reached
		d.eventually("half of the blob is on disk", func() bool { return diskUsage(t, filepath.Join(d.store(), "ingest")) >= half-(1<<20) })
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		close(gone)
		d.run("pull", "-q", name)
		d.run("prune", "-f")
		mu.Lock()
		defer mu.Unlock()
		last := ranges[len(ranges)-1]
		var from int64
		if _, err := fmt.Sscanf(last, "bytes=%d-", &from); err != nil || from < half-(1<<20) {
			t.Errorf("the second pull asks for %q, want the rest after about %d", last, half)
		}
		if left := d.leftovers(); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
}

func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}

func TestCutConnectionsAreContinued(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ref := noiseImage(t, 8)
	var mu sync.Mutex
	cuts, sent := 3, int64(0)
	host := faultyRegistry(t, func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		w = served{w, func(n int) {
			mu.Lock()
			sent += int64(n)
			mu.Unlock()
		}}
		mu.Lock()
		cut := cuts > 0
		cuts--
		mu.Unlock()
		if !cut {
			forward.ServeHTTP(w, r)
			return
		}
		forward.ServeHTTP(&limited{w, 2 << 20, func() { panic(http.ErrAbortHandler) }}, r)
	})
	d.run("pull", "-q", strings.Replace(ref, env.registry, host, 1))
	d.checkBlobs()
	// What was on its way when a connection was cut may be sent again.
	if m, _ := fetchManifest(t, ref); sent > m.Layers[0].Size+m.Config.Size+3<<20 {
		t.Errorf("the registry sent %d bytes for a layer of %d", sent, m.Layers[0].Size)
	}
}

// served tells how much of an answer was sent.
type served struct {
	http.ResponseWriter
	add func(int)
}

func (s served) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.add(n)
	return n, err
}

func (s served) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func TestWrongAndShortBlobsAreRefused(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ref := noiseImage(t, 1)
	for name, blob := range map[string]func(w http.ResponseWriter, r *http.Request, forward http.Handler){
		"another blob": func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
			forward.ServeHTTP(&flipped{w}, r)
		},
		"shorter than it says": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write([]byte("short")) },
		"not there":            func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.NotFound(w, r) },
	} {
		host := faultyRegistry(t, blob)
		text := d.fails([]string{"pull", "-q", strings.Replace(ref, env.registry, host, 1)}, "sha256:")
		if n := len(d.layers()); n > 0 {
			t.Errorf("%s: %d layers are there:\n%s", name, n, text)
		}
		if left := d.leftovers(); len(left) > 0 {
			t.Errorf("%s: left over: %q", name, left)
		}
		d.checkBlobs()
	}
}

// flipped changes what passes, not its length.
type flipped struct{ http.ResponseWriter }

func (f *flipped) Write(p []byte) (int, error) {
	q := append([]byte{}, p...)
	for i := range q {
		q[i] ^= 1
	}
	return f.ResponseWriter.Write(q)
}

// checkBlobs reads every blob of the store: each is what its name says.
func (d *den) checkBlobs() {
	d.t.Helper()
	list, err := filepath.Glob(filepath.Join(d.store(), "blobs", "sha256", "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range list {
		b, err := os.ReadFile(p)
		if err != nil {
			d.t.Fatal(err)
		}
		if got := digestOf(b); got != "sha256:"+filepath.Base(p) {
			d.t.Errorf("blob %s is %s", filepath.Base(p), got)
		}
	}
}

// smallDisk gives d a store on a file system of so many MiB.
func smallDisk(t *testing.T, d *den, mib int) *den {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(d.home, "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=0755,size=%dm", mib)); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	d.own(dir)
	return d.with("DEN_STORE=" + filepath.Join(dir, "store"))
}

func TestFullDiskIsAClearErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ref := noiseImage(t, 40)
		d = smallDisk(t, d, 32)
		store := filepath.Join(d.home, "disk/store")
		big := d.dir(files{"Dockerfile": "FROM scratch\nCOPY big /\n", "big": strings.Repeat("0123456789abcdef", 48<<16)})
		fresh := d.dir(files{"Dockerfile": "FROM @small\nRUN echo fits > /fits\n"})
		d.run("build", "-t", "fits", fresh)
		for what, args := range map[string][]string{
			"pull": {"pull", "-q", ref},
			"COPY": {"build", big},
			"tar":  {"import", filepath.Join(big, "big.tar"), "x"},
			"RUN":  {"build", d.dir(files{"Dockerfile": "FROM @small\nRUN dd if=/dev/zero of=/big bs=1M count=48\n"})},
		} {
			if what == "tar" {
				if b, err := exec.Command("tar", "-C", big, "-cf", filepath.Join(d.home, "big.tar"), "big").CombinedOutput(); err != nil {
					t.Fatalf("tar: %v\n%s", err, b)
				}
				args[1] = filepath.Join(d.home, "big.tar")
			}
			text := strings.ToLower(d.fails(args))
			if !strings.Contains(text, "no space left") {
				t.Errorf("%s: the error does not say that there is no space left:\n%s", what, text)
			}
			left, _ := filepath.Glob(filepath.Join(store, "tmp", "*"))
			if len(left) > 0 {
				t.Errorf("%s: left over: %q", what, left)
			}
		}
		d.run("prune", "-f")
		if r := d.try(nil, "run", "--rm", "fits", "cat", "/fits"); r.out != "fits\n" {
			t.Errorf("the image of before: %+v", r)
		}
		if out := d.run("build", "-q", "-t", "again", fresh); !strings.HasPrefix(out, "sha256:") {
			t.Errorf("the build afterwards: %q", out)
		}
	})
}

func TestTenProcessesExecuteEachSharedStepOnce(t *testing.T) {
	t.Parallel()
	const builds = 10
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"f": "f"})
		for i := range builds {
			d.fill(ctx, files{fmt.Sprintf("Dockerfile.%d", i): fmt.Sprintf(`FROM @small
RUN --mount=type=cache,target=/c echo one >> /c/log; sleep 0.3; echo one > /one
COPY f /f
RUN --mount=type=cache,target=/c echo two >> /c/log; sleep 0.2; cp /one /two
RUN --mount=type=cache,target=/c echo three >> /c/log; cp /two /three
RUN --mount=type=cache,target=/c echo four >> /c/log; sleep 0.1; cp /three /four
RUN --mount=type=cache,target=/c echo own%d >> /c/log; echo %[1]d > /own; cp /c/log /log
`, i)})
		}
		var wg sync.WaitGroup
		results := make([]result, builds)
		for i := range results {
			wg.Go(func() {
				results[i] = d.try(nil, "build", "--progress=rawjson", "-t", fmt.Sprint("w9:", i), "-f", filepath.Join(ctx, fmt.Sprint("Dockerfile.", i)), ctx)
			})
		}
		wg.Wait()
		times := map[string]int{}
		for i, r := range results {
			if r.code != 0 {
				t.Fatalf("build %d: exit %d\n%s", i, r.code, r.err)
			}
			for _, name := range executed(t, r.err) {
				times[strings.SplitN(name, "]", 2)[0]]++
			}
		}
		equal(t, "times that the steps were executed", map[string]int{
			"[stage-0 2/7": 1, "[stage-0 3/7": 1, "[stage-0 4/7": 1, "[stage-0 5/7": 1, "[stage-0 6/7": 1, "[stage-0 7/7": builds,
		}, times)
		if out := d.run("run", "--rm", "w9:3", "cat", "/own"); out != "3\n" {
			t.Errorf("the image says %q", out)
		}
		// What the steps left behind counts them, whatever the display says.
		d.run("build", "-t", "count", d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c cp /c/log /log\n"}))
		ran := map[string]int{}
		for _, line := range strings.Fields(d.run("run", "--rm", "count", "cat", "/log")) {
			ran[strings.TrimRight(line, "0123456789")]++
		}
		equal(t, "lines in the cache mount", map[string]int{"one": 1, "two": 1, "three": 1, "four": 1, "own": builds}, ran)
	})
}

func TestTenProcessesPullAtOnceAndDownloadOnce(t *testing.T) {
	t.Parallel()
	const pulls = 10
	d := newDen(t)
	f := newFront(t, httptest.NewServer, nil)
	name := newName(t)
	newDen(t).run("build", "-q", "--push", "-t", name, d.dir(files{
		"Dockerfile": "FROM @small\nRUN head -c 4000000 /dev/urandom > /a\nRUN head -c 3000000 /dev/urandom > /b\nCOPY Dockerfile /c\n",
	}))
	m, _ := fetchManifest(t, name)
	var wg sync.WaitGroup
	results := make([]result, pulls)
	for i := range results {
		wg.Go(func() { results[i] = d.try(nil, "pull", f.through(name)) })
	}
	wg.Wait()
	unpacked := 0
	for i, r := range results {
		if r.code != 0 {
			t.Fatalf("pull %d: exit %d\n%s", i, r.code, r.err)
		}
		unpacked += strings.Count(r.err, "Pull complete")
	}
	if unpacked != len(m.Layers) {
		t.Errorf("%d layers were unpacked %d times", len(m.Layers), unpacked)
	}
	for _, b := range append(m.Layers, m.Config) {
		if n := f.count("GET", b.Digest); n != 1 {
			t.Errorf("%s %s was asked for %d times", b.MediaType, b.Digest, n)
		}
	}
	if n := len(d.layers()); n != len(m.Layers) {
		t.Errorf("the store has %d layers, the image %d", n, len(m.Layers))
	}
	d.checkBlobs()
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}
