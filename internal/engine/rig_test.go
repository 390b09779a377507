package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/image"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store/storetest"
)

// A fakeExecutor runs nothing: a test plays the program.
type fakeExecutor struct {
	mu       sync.Mutex
	requests []*sandbox.Request
	fail     error
	// program is what the payload does; its result is the exit code.
	program func(*fakeSandbox) int
	// late, if set, is called between the program's start and Start's return.
	late func()
}

func (f *fakeExecutor) Name() string { return "fake" }

func (f *fakeExecutor) Start(_ context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r)
	if f.fail != nil {
		return nil, f.fail
	}
	own, shut := inherited(r)
	sb := &fakeSandbox{request: own, signals: make(chan unix.Signal, 16), sizes: make(chan Size, 16), done: make(chan struct{})}
	go func() {
		defer close(sb.done)
		defer shut()
		if f.program != nil {
			sb.code = f.program(sb)
		}
	}()
	if f.late != nil {
		f.late()
	}
	return sb, nil
}

// inherited is r with streams of the program's own, as a program inherits them.
func inherited(r *sandbox.Request) (*sandbox.Request, func()) {
	own := *r
	var files []*os.File
	dup := func(v any) *os.File {
		f, ok := v.(*os.File)
		if !ok || f == nil {
			return nil
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
		return files[len(files)-1]
	}
	if f := dup(r.Stdin); f != nil {
		own.Stdin = f
	}
	if f := dup(r.Stdout); f != nil {
		own.Stdout = f
	}
	if f := dup(r.Stderr); f != nil {
		own.Stderr = f
	}
	return &own, func() {
		for _, f := range files {
			f.Close()
		}
	}
}

func (f *fakeExecutor) last(t *testing.T) *sandbox.Request {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.requests) == 0 {
		t.Fatal("nothing was started")
	}
	return f.requests[len(f.requests)-1]
}

// fakeSandbox is what runs.
type fakeSandbox struct {
	limits    []*specs.LinuxResources
	unlimited error // why there can be no limits
	request   *sandbox.Request
	signals   chan unix.Signal
	sizes     chan Size
	done      chan struct{}
	code      int
}

func (s *fakeSandbox) Pid() int { return 1 }

func (s *fakeSandbox) Signal(sig unix.Signal) error {
	select {
	case s.signals <- sig:
		return nil
	case <-s.done:
		return os.ErrProcessDone
	}
}

func (s *fakeSandbox) Resize(rows, cols uint16) error {
	s.sizes <- Size{rows, cols}
	return nil
}

func (s *fakeSandbox) SetLimits(_ context.Context, r *specs.LinuxResources) error {
	s.limits = append(s.limits, r)
	return s.unlimited
}

func (s *fakeSandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.done:
		return sandbox.Exit{Code: s.code}, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// signalled is a program that ends with the number of the first signal.
func signalled(s *fakeSandbox) int { return int(<-s.signals) }

// A rig is an engine with one image, "box".
type rig struct {
	*Engine
	exec *fakeExecutor
	t    *testing.T
}

func newRig(t *testing.T, changes ...string) *rig {
	t.Helper()
	st := storetest.Open(t)
	images := image.New(st, nil, image.Options{})
	changes = append([]string{`CMD ["/bin/default"]`}, changes...)
	_, err := images.Import(t.Context(), rootfs(t), image.ImportOptions{Name: "box", Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	exec := &fakeExecutor{}
	return &rig{New(Options{Store: st, Images: images, Exec: exec, Driver: snapshot.Drivers()[0]}), exec, t}
}

func rootfs(t *testing.T) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct{ name, text string }{
		{"etc/passwd", "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n"},
		{"etc/group", "root:x:0:\nwww:x:33:\nextra:x:44:www\n"},
		{"data/seed", "seed"}, {"data/sub/deep", "deep"},
	} {
		err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o640, Size: int64(len(f.text)), Uid: os.Geteuid(), Gid: os.Getegid()})
		if _, werr := io.WriteString(w, f.text); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func (r *rig) run(req RunRequest, s Streams) (Exit, error) {
	if req.Image == "" {
		req.Image = "box"
	}
	return r.Run(r.t.Context(), req, s)
}

func (r *rig) mustRun(req RunRequest) *sandbox.Request {
	r.t.Helper()
	if _, err := r.run(req, Streams{}); err != nil {
		r.t.Fatal(err)
	}
	return r.exec.last(r.t)
}

// names lists the containers that there are.
func (r *rig) names() []string {
	r.t.Helper()
	list, err := r.List()
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, c := range list {
		names = append(names, c.Name)
	}
	return names
}

// background runs a container; started is closed when its program runs.
func (r *rig) background(req RunRequest) (started <-chan struct{}, ended <-chan Exit) {
	s, e := make(chan struct{}), make(chan Exit, 1)
	go func() {
		exit, err := r.run(req, Streams{Started: func(string) { close(s) }})
		if err != nil {
			r.t.Error(err)
		}
		e <- exit
	}()
	return s, e
}

// waitCode waits for a container's end.
func (r *rig) waitCode(ctx context.Context, name string) (int, error) {
	ended, err := r.Wait(ctx, name, WaitNotRunning)
	if err != nil {
		return 0, err
	}
	w := <-ended
	return w.Code, w.Err
}

func (r *rig) copyLogs(ctx context.Context, name string, o LogOptions, stdout, stderr io.Writer) error {
	l, err := r.Logs(ctx, name, o)
	if err != nil {
		return err
	}
	return errors.Join(l.Copy(ctx, stdout, stderr), l.Close())
}
