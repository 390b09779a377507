package engine

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/image"
	"den/internal/store"
)

// A container that cannot get its layers is an error, and is not there.
func TestContainerOfAnImageWhoseLayersAreGone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Durability: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	images := image.New(st, nil, image.Options{})
	var b bytes.Buffer
	if err := tar.NewWriter(&b).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Import(t.Context(), &b, image.ImportOptions{Name: "empty:latest"}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "layers", st.Class())); err != nil {
		t.Fatal(err)
	}
	e := New(Options{Store: st, Images: images})
	if _, err := e.Run(t.Context(), RunRequest{Image: "empty:latest", Args: []string{"true"}, Pull: "never"}, Streams{}); !errdefs.IsNotFound(err) {
		t.Errorf("error is %v", err)
	}
	ids, err := st.Containers()
	if err != nil || len(ids) > 0 {
		t.Errorf("containers are %q, %v", ids, err)
	}
}
