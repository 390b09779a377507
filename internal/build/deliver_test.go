package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/image"
)

func TestDeliveryIsTheOnlyOutputAndGetsTheImage(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": "FROM scratch\nCOPY a /\nCOPY b /\nCOPY skip /\n", "a": "a", "b": "b", "skip": "s"})
	var layers int
	req := Request{Context: dir, Format: image.Format{DockerTypes: true}, Rewriting: image.Rewriting{Squash: true, Drop: []string{"/skip"}}, Deliver: &Delivery{
		To: func(_ context.Context, b *image.Blobs) error {
			layers = len(b.Images[0].Layers)
			if !strings.Contains(b.Target.MediaType, "docker") {
				t.Errorf("manifest is a %s", b.Target.MediaType)
			}
			return nil
		},
	}}
	res, _ := r.solve(req)
	if layers != 1 || res.Metadata["containerimage.digest"] == nil {
		t.Errorf("%d layers, %v", layers, res.Metadata)
	}
	if list, err := r.open().images.List(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("the store has %v, %v", list, err)
	}
	failed := errors.New("refused")
	req.Deliver.To = func(context.Context, *image.Blobs) error { return failed }
	if _, _, err := r.try(req); !errors.Is(err, failed) {
		t.Error(err)
	}
}

func TestTarContextMayBeADirectoryInside(t *testing.T) {
	r := newRig(t)
	files := map[string]string{"sub/Dockerfile": "FROM scratch\nCOPY a /\n", "sub/a": "hello", "other": "x"}
	out := t.TempDir()
	raw := tarOf(t, files)
	r.solve(Request{Tar: bytes.NewReader(gz(t, raw)), SubDir: "/sub/", Outputs: []string{out}})
	if got, err := os.ReadFile(filepath.Join(out, "a")); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	dir := r.context(files)
	r.solve(Request{Context: dir, SubDir: "sub"})
	own := filepath.Join(t.TempDir(), "Own")
	if err := os.WriteFile(own, []byte("FROM scratch\nCOPY other /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.solve(Request{Tar: bytes.NewReader(raw), File: own})
	for name, req := range map[string]Request{
		"missing": {Tar: bytes.NewReader(raw), SubDir: "none"}, "file": {Tar: bytes.NewReader(raw), SubDir: "other"},
		"not a tar": {Tar: strings.NewReader("FROM scratch")}, "empty": {Tar: strings.NewReader("")}, "local": {Context: dir, SubDir: "none"},
	} {
		if _, _, err := r.try(req); err == nil {
			t.Errorf("%s: built", name)
		}
	}
}

func TestLinkInATarContextDoesNotLeadOut(t *testing.T) {
	secret := write(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nCOPY secret /\n", "secret": "s"})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, target := range map[string]string{"abs": secret, "up": strings.Repeat("../", 40) + secret, "hop": "abs"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	for _, sub := range []string{"abs", "up", "hop", "../" + filepath.Base(secret), "."} {
		_, _, err := r.try(Request{Tar: bytes.NewReader(b.Bytes()), SubDir: sub})
		if err == nil || sub != "." && !strings.HasPrefix(sub, "..") && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", sub, err)
		}
	}
}
