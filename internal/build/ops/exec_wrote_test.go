package ops

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/sandbox"
)

// A writer is an executor whose payloads make one file, and are over.
type writer struct {
	sandbox.Sandbox
	told *layer.Applied // what it says that it wrote
}

func (writer) Name() string { return "writer" }

func (w writer) Start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	_, err := layer.Build(ctx, r.Root.Upper, testTree(testFile{name: "f", content: "new"}), layer.UnpackOptions{Image: true})
	if w.told != nil {
		r.Wrote(*w.told)
	}
	return w, err
}

func (writer) Wait(context.Context) (sandbox.Exit, error) { return sandbox.Exit{}, nil }

func (writer) Signal(unix.Signal) error { return nil }

// What a sandbox says that it wrote is not read again to find out what it is: here it is
// something else.
func TestAStepWhoseLayerIsKnownIsNotReadAgain(t *testing.T) {
	wrote := layer.Applied{DiffID: digest.FromString("what it wrote"), SizeBytes: 3072, Entries: 1, TreeBytes: 3}
	step := func(told *layer.Applied) layer.Applied {
		env := imageEnv(t)
		env.Exec = writer{told: told}
		out, _, err := tryStep(t.Context(), env, shell("true", nil), imageRef(t, env, testFile{name: "old", content: "x"}))
		check(t, err)
		defer out[0].Close()
		top := out[0].Layers()[1]
		return layer.Applied{DiffID: top.DiffID, SizeBytes: top.SizeBytes}
	}
	if got := step(&wrote); got.DiffID != wrote.DiffID || got.SizeBytes != wrote.SizeBytes {
		t.Errorf("the layer is %+v, the sandbox said %+v", got, wrote)
	}
	if got := step(nil); got.DiffID == wrote.DiffID || got.SizeBytes != 2048 {
		t.Errorf("the layer of a sandbox that says nothing is %+v", got)
	}
}
