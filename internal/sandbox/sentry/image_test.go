package sentry_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
	"den/internal/sys"
)

// imageExecutor gives its executor every layer of a request in image form, takes the changes in
// that form, and shows both as directories.
type imageExecutor struct {
	*sentry.Executor
	dir string
	n   atomic.Int64
}

func (e *imageExecutor) Start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	c := *r
	c.Mounts = append([]oci.Mount{}, r.Mounts...)
	for i := range c.Mounts {
		if err := e.images(ctx, &c.Mounts[i]); err != nil {
			return nil, err
		}
	}
	if err := e.images(ctx, &c.Root); err != nil {
		return nil, err
	}
	if c.Root.Upper != "" {
		c.Root.Upper = e.next()
	}
	if other, ok := c.NetworkOf.(*imageSandbox); ok {
		c.NetworkOf = other.able
	}
	s, err := e.Executor.Start(ctx, &c)
	if err != nil {
		return nil, err
	}
	return &imageSandbox{s.(able), c.Root.Upper, r.Root.Upper}, nil
}

func (e *imageExecutor) next() string {
	return filepath.Join(e.dir, digest.FromString(string(rune(e.n.Add(1)))).Encoded())
}

func (e *imageExecutor) images(ctx context.Context, m *oci.Mount) error {
	if m.Type != "overlay" {
		return nil
	}
	lower := make([]string, len(m.Lower))
	for i, dir := range m.Lower {
		lower[i] = e.next()
		if _, err := layer.Build(ctx, lower[i], layer.WalkUpper(dir), layer.UnpackOptions{Image: true}); err != nil {
			return err
		}
	}
	m.Lower = lower
	return nil
}

// able is what a sentry's sandbox can do.
type able interface {
	sandbox.Sandbox
	sandbox.Execer
	sandbox.Plugger
	sandbox.Filer
	sandbox.Changer
	sandbox.Pauser
	sandbox.Inspector
	sandbox.Limiter
}

type imageSandbox struct {
	able
	image, dir string
}

func (s *imageSandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	exit, err := s.able.Wait(ctx)
	if err != nil || s.image == "" || s.dir == "" {
		return exit, err
	}
	before, err := os.Stat(s.dir)
	if err != nil {
		return exit, err
	}
	_, err = layer.Build(ctx, s.dir, layer.WalkUpper(s.image), layer.UnpackOptions{Recorded: !sys.MayChown()})
	if errors.Is(err, os.ErrNotExist) { // it was cancelled
		err = nil
	}
	// The root is no part of a layer.
	return exit, errors.Join(err, os.Chtimes(s.dir, before.ModTime(), before.ModTime()))
}

func TestContract(t *testing.T) {
	sandboxtest.Contract(t, &imageExecutor{Executor: newExecutor(t, sentry.Options{}), dir: t.TempDir()})
}

// changes does what a step may do to layers, in a way that leaves no trace of the time.
const changes = `set -e
cd /d
echo new >new; chmod 4755 new; chown 33:34 new; ln new sub/link; ln -s ../target sub/soft
chmod 640 untouched/f
rm gone; rm -r tree; mkdir tree; echo in >tree/in
echo longer >>kept; chmod 600 moded
mkdir -p temporary/deep; echo x >temporary/deep/f; rm -r temporary
echo a >a; mv a renamed; mv dir moved
mkfifo fifo; mknod null c 1 3; chown 7:8 fifo
rm whole; mkdir whole
dd if=/dev/zero of=sparse bs=1 count=1 seek=100000 2>/dev/null
rm /etc/passwd; rm -r emptied; mkdir emptied; rmdir emptied
for f in $(find /d /etc -depth); do case $f in */untouched) ;; *) touch -h -d @1234567890 "$f";; esac; done
`

// newLower is a layer for changes to change.
func newLower(t *testing.T, b *sandboxtest.Bench) {
	t.Helper()
	for _, f := range []string{"gone", "kept", "moded", "whole", "tree/a", "tree/b/c", "dir/f", "dir/sub/g", "sub/x", "emptied/y", "untouched/f"} {
		b.Put("d/"+f, "old "+f+"\n", 0o644)
	}
	old := time.Unix(1000000000, 0)
	if err := os.Chtimes(filepath.Join(b.Lower, "d/untouched"), old, old); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mkfifo", "rmdir"} {
		b.Link("bin/"+name, "busybox")
	}
}

// diffID is what a step with these changes gives.
func diffID(t *testing.T, e sandbox.Executor) oci.Digest {
	t.Helper()
	b := sandboxtest.New(t, e)
	newLower(t, b)
	out, exit := b.Run(b.Request(changes))
	if exit.Code != 0 || out != "" {
		t.Fatalf("%+v: %s", exit, out)
	}
	a, err := layer.WriteTar(t.Context(), io.Discard, layer.WalkUpper(b.Upper))
	if err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		for f, err := range layer.WalkUpper(b.Upper) {
			t.Log(f.Entry, err)
		}
	}
	return a.DiffID
}

// What a sandbox says that it wrote is what a walk of it finds, and nobody reads it again.
func TestASandboxKnowsWhatItWrote(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	newLower(t, b)
	r := b.Request(changes)
	r.Root.Lower, r.Root.Upper = []string{image(t, b.Lower)}, filepath.Join(t.TempDir(), "image")
	var told []layer.Applied
	r.Wrote = func(a layer.Applied) { told = append(told, a) }
	if out, exit := b.Run(r); exit.Code != 0 || out != "" {
		t.Fatalf("%+v: %s", exit, out)
	}
	want, err := layer.WriteTar(t.Context(), io.Discard, layer.WalkUpper(r.Root.Upper))
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != want {
		t.Errorf("it said %+v, it wrote %+v", told, want)
	}
}

func TestAStepHasTheDiffIDThatItHasInNamespaces(t *testing.T) {
	own := newExecutor(t, sentry.Options{})
	choice, err := sandbox.Choose(probe.Gather(t.Context(), t.TempDir()), "")
	if err != nil || choice.Rung != sandbox.RungPrivileged {
		t.Skip("needs the rung privileged: ", choice, err)
	}
	kernel, err := sandbox.NewNamespaces(sandbox.Options{Choice: choice})
	if err != nil {
		t.Fatal(err)
	}
	want := diffID(t, kernel)
	for name, e := range map[string]sandbox.Executor{
		"directories": own, "images": &imageExecutor{Executor: own, dir: t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			if got := diffID(t, e); got != want {
				t.Errorf("%s, in namespaces %s", got, want)
			}
		})
	}
}
