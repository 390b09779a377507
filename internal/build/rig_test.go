package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/probe"
	"den/internal/progress"
	"den/internal/registry"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
)

// A rig is a store on which builders work one after the other, each as a new
// den process would.
type rig struct {
	t    *testing.T
	root string
	eng  string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, root: filepath.Join(t.TempDir(), "store"), eng: t.TempDir()}
	t.Cleanup(func() {
		// Trees may hold directories that their owner cannot enter.
		err := filepath.WalkDir(r.root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				return os.Chmod(p, 0o700)
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			t.Log(err)
		}
	})
	return r
}

// seen is what a build reported.
type seen struct {
	mu       sync.Mutex
	vertices map[digest.Digest]progress.Vertex
	order    []digest.Digest
	logs     map[string]string
	warnings []progress.Warning
}

func (s *seen) Event(e progress.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.Vertex != nil:
		if _, ok := s.vertices[e.Vertex.Digest]; !ok {
			s.order = append(s.order, e.Vertex.Digest)
		}
		s.vertices[e.Vertex.Digest] = *e.Vertex
	case e.Log != nil:
		s.logs[s.vertices[e.Log.Vertex].Name] += string(e.Log.Data)
	case e.Warning != nil:
		s.warnings = append(s.warnings, *e.Warning)
	}
}

// executed names the steps of the Dockerfile that were not cached, sorted.
func (s *seen) executed() []string {
	var out []string
	for _, v := range s.vertices {
		if v.Completed != nil && !v.Cached && v.Name[0] == '[' && v.Name[1] != 'i' {
			out = append(out, v.Name)
		}
	}
	slices.Sort(out)
	return out
}

// den is one process's view of the rig.
type den struct {
	*Builder
	images *image.Images
	store  *store.Store
}

func (r *rig) open() *den {
	r.t.Helper()
	t := r.t
	st, err := store.Open(t.Context(), r.root, store.Options{EngineDir: r.eng, Durability: durable.None})
	if err != nil {
		t.Fatal(err)
	}
	reg, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	images := image.New(st, reg, image.Options{})
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return &den{images: images, store: st, Builder: New(Options{Store: st, Images: images, Runner: chooseRunner(st)})}
}

// chooseRunner chooses a rung for a store, as package daemon does.
func chooseRunner(st *store.Store) func(context.Context) (*Runner, error) {
	return func(ctx context.Context) (*Runner, error) {
		facts := probe.Gather(ctx, st.Root())
		choice, err := sandbox.Choose(facts, "")
		if err != nil {
			return nil, err
		}
		ex, err := sandbox.NewNamespaces(sandbox.Options{Choice: choice})
		if err != nil {
			return nil, err
		}
		driver, _ := snapshot.Choose(snapshot.Facts{
			OverlayOK: facts.Overlay == 0, OnOverlay: facts.FSType == "overlay", Reflink: facts.Reflink == 0,
			Scratch: func(ctx context.Context) (snapshot.Draft, error) { return st.NewDraft(ctx) },
		})
		return &Runner{Driver: driver, Exec: ex}, nil
	}
}

// needsRunner skips where no step can run.
func (r *rig) needsRunner() {
	r.t.Helper()
	if os.Geteuid() != 0 {
		r.t.Skip("needs root: steps run in namespaces of their own")
	}
	run, err := r.open().runner.get(r.t.Context())
	if err != nil {
		r.t.Skipf("needs a rung: %v", err)
	}
	if run.Driver == nil || run.Exec == nil {
		r.t.Skip("needs a rung: there is no executor")
	}
}

// solve builds in a new process and fails the test on an error.
func (r *rig) solve(req Request) (*Response, *seen) {
	r.t.Helper()
	res, s, err := r.try(req)
	if err != nil {
		r.t.Fatalf("build: %v", err)
	}
	return res, s
}

func (r *rig) try(req Request) (*Response, *seen, error) {
	r.t.Helper()
	s := &seen{vertices: map[digest.Digest]progress.Vertex{}, logs: map[string]string{}}
	req.Sink = s
	if req.LookupEnv == nil {
		req.LookupEnv = lookup(nil)
	}
	res, err := r.open().Solve(r.t.Context(), req)
	return res, s, err
}

// context makes a build context.
func (r *rig) context(files map[string]string) string {
	r.t.Helper()
	return write(r.t, r.t.TempDir(), files)
}

// installShell adds a root file system to a context, under rootfs/: a static
// shell with the common tools.
func installShell(t testing.TB, dir string) string {
	t.Helper()
	if out, err := exec.Command(buildShell(t), "--install", filepath.Join(dir, "rootfs")).CombinedOutput(); err != nil {
		t.Fatalf("install the shell: %v: %s", err, out)
	}
	return dir
}

// shellOnce builds the shell and leaves nothing behind: no test outlives the
// others to remove it.
var shellOnce = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "den-test-shell-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "base")
	cmd := exec.Command("go", "build", "-o", out, "./base")
	cmd.Dir = "../../demo"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	return os.ReadFile(out)
})

func buildShell(t testing.TB) string {
	t.Helper()
	shell, err := shellOnce()
	if err != nil {
		t.Skipf("needs the demonstration's shell: %v", err)
	}
	path := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(path, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// config is the configuration of an image in the rig's store.
func (r *rig) config(name string) *oci.Image {
	r.t.Helper()
	img, err := r.open().images.Resolve(r.t.Context(), name, image.ResolveOptions{Mode: image.ResolveLocal})
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := img.Parse()
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}
