// Package sandboxtest is the contract that every sandbox.Executor keeps,
// as tests. It makes its root file systems from a static busybox.
package sandboxtest

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"den/internal/oci"
	"den/internal/sandbox"
)

// A Bench has what one test needs: an executor and a root file system.
type Bench struct {
	testing.TB
	Exec sandbox.Executor
	// Lower is the image, Upper takes the changes.
	Lower, Upper, Work string
}

// Busybox is the path of a static busybox; without one the test is skipped.
func Busybox(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"busybox-static", "busybox"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		libs, err := f.ImportedLibraries()
		f.Close()
		if err == nil && len(libs) == 0 {
			return path
		}
	}
	t.Skip("needs a static busybox in PATH (package busybox-static)")
	return ""
}

// New makes a bench with an image of busybox.
func New(t testing.TB, e sandbox.Executor) *Bench {
	t.Helper()
	bin := Busybox(t)
	dir := t.TempDir()
	b := &Bench{TB: t, Exec: e, Lower: filepath.Join(dir, "lower"), Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "lower/proc", "lower/sys", "lower/dev", "upper", "work"} {
		b.must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	b.must(os.Chmod(filepath.Join(dir, "lower/tmp"), 0o1777))
	data, err := os.ReadFile(bin)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(b.Lower, "bin/busybox"), data, 0o755))
	for _, name := range strings.Fields(applets) {
		b.must(os.Symlink("busybox", filepath.Join(b.Lower, "bin", name)))
	}
	b.must(os.WriteFile(filepath.Join(b.Lower, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644))
	// The kernel leaves a directory without permissions in work.
	t.Cleanup(func() { _ = os.Remove(filepath.Join(b.Work, "work")); _ = os.RemoveAll(dir) })
	return b
}

const applets = "sh cat ls id ps kill sleep true false echo mkdir touch rm chown chmod mount mknod stat hostname env pwd wc grep dd sed tr sort head tail ip nc readlink stty tty test mv ln find umask unshare nproc cut seq od"

func (b *Bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// Put writes a file of the image.
func (b *Bench) Put(name, content string, mode os.FileMode) {
	b.Helper()
	path := filepath.Join(b.Lower, name)
	b.must(os.MkdirAll(filepath.Dir(path), 0o755))
	b.must(os.WriteFile(path, []byte(content), mode))
	b.must(os.Chmod(path, mode))
}

// Link makes a symbolic link of the image.
func (b *Bench) Link(name, target string) {
	b.Helper()
	path := filepath.Join(b.Lower, name)
	b.must(os.RemoveAll(path))
	b.must(os.MkdirAll(filepath.Dir(path), 0o755))
	b.must(os.Symlink(target, path))
}

// Request is a request that runs a shell script with Docker's defaults.
func (b *Bench) Request(script string) *sandbox.Request {
	b.Helper()
	return b.RequestFor(sandbox.SpecOptions{Args: []string{"/bin/sh", "-c", script}})
}

// RequestFor is a request with Docker's defaults but for o.
func (b *Bench) RequestFor(o sandbox.SpecOptions) *sandbox.Request {
	b.Helper()
	if o.Env == nil {
		o.Env = []string{"PATH=/usr/local/bin:/bin"}
	}
	spec, err := sandbox.DefaultSpec(o)
	b.must(err)
	return &sandbox.Request{
		ID: strings.NewReplacer("/", "-").Replace(b.Name()), Spec: spec, Network: sandbox.NetworkHost,
		Root: oci.Mount{Type: "overlay", Target: "/", Lower: []string{b.Lower}, Upper: b.Upper, Work: b.Work},
		Warn: func(s string) { b.Log("warning: ", s) },
	}
}

// Run runs r to its end and returns its output and exit.
func (b *Bench) Run(r *sandbox.Request) (string, sandbox.Exit) {
	b.Helper()
	out, exit, err := b.Try(r)
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return out, exit
}

// Try is Run for what may fail to start.
func (b *Bench) Try(r *sandbox.Request) (string, sandbox.Exit, error) {
	b.Helper()
	var out Buffer
	if r.Stdout == nil {
		r.Stdout = &out
	}
	if r.Stderr == nil {
		r.Stderr = &out
	}
	ctx, cancel := context.WithTimeoutCause(b.Context(), limit, errors.New("the sandbox did not end in time"))
	defer cancel()
	s, err := b.Exec.Start(ctx, r)
	if err != nil {
		return out.String(), sandbox.Exit{}, err
	}
	exit, err := s.Wait(ctx)
	b.reset(r)
	return out.String(), exit, err
}

// reset makes the work directory new: an overlay that was volatile is not mounted twice.
func (b *Bench) reset(r *sandbox.Request) {
	if r.Root.Type == "overlay" {
		b.Renew()
	}
}

// Renew empties the work directory.
func (b *Bench) Renew() {
	_ = os.Remove(filepath.Join(b.Work, "work"))
	_ = os.RemoveAll(b.Work)
	b.must(os.MkdirAll(b.Work, 0o755))
}

// Changes lists what is in the upper directory.
func (b *Bench) Changes() string {
	b.Helper()
	var names []string
	b.must(filepath.WalkDir(b.Upper, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(b.Upper, path); rel != "." {
			names = append(names, rel)
		}
		return err
	}))
	return strings.Join(names, " ")
}

// A Buffer is a bytes.Buffer for several goroutines.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ io.Writer = (*Buffer)(nil)
