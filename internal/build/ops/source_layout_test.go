package ops

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
)

// A layoutDir is an OCI image layout in the making.
type layoutDir struct {
	t   *testing.T
	dir string
}

func (l layoutDir) put(mediaType string, data []byte) oci.Descriptor {
	l.t.Helper()
	d := digest.FromBytes(data)
	name := filepath.Join(l.dir, layoutBlob(d))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (l layoutDir) putJSON(mediaType string, v any) oci.Descriptor {
	l.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.put(mediaType, data)
}

// image puts an image of one layer and returns its manifest.
func (l layoutDir) image(arch string, files ...testFile) oci.Descriptor {
	l.t.Helper()
	var tar, gz bytes.Buffer
	applied, err := layer.WriteTar(context.Background(), &tar, testTree(files...))
	if err != nil {
		l.t.Fatal(err)
	}
	w := gzip.NewWriter(&gz)
	w.Write(tar.Bytes())
	w.Close()
	var c oci.Image
	c.OS, c.Architecture = "linux", arch
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []oci.Digest{applied.DiffID}
	m := oci.Manifest{
		Config: l.putJSON("application/vnd.oci.image.config.v1+json", c),
		Layers: []oci.Descriptor{l.put("application/vnd.oci.image.layer.v1.tar+gzip", gz.Bytes())},
	}
	m.SchemaVersion, m.MediaType = 2, "application/vnd.oci.image.manifest.v1+json"
	d := l.putJSON(m.MediaType, m)
	d.Platform = &oci.Platform{OS: "linux", Architecture: arch}
	return d
}

func (l layoutDir) index(manifests ...oci.Descriptor) oci.Descriptor {
	var x oci.Index
	x.SchemaVersion, x.MediaType, x.Manifests = 2, "application/vnd.oci.image.index.v1+json", manifests
	return l.putJSON(x.MediaType, x)
}

func newLayout(t *testing.T, env *Env, d oci.Digest) *layoutOp {
	t.Helper()
	v := sourceVertex("oci-layout://mine@"+string(d), map[string]string{pb.AttrOCILayoutStoreID: "store"})
	v.Op.Platform = &pb.Platform{OS: "linux", Architecture: "arm64"}
	op, err := newLayoutOp(env, v, "mine@"+string(d))
	if err != nil {
		t.Fatal(err)
	}
	return op.(*layoutOp)
}

func TestImagesComeFromLayouts(t *testing.T) {
	l := layoutDir{t, t.TempDir()}
	x := l.index(l.image("amd64", testFile{name: "a", content: "amd"}), l.image("arm64", testFile{name: "a", content: "arm"}))
	env := storeEnv(t, t.TempDir())
	env.Layouts = map[string]string{"store": l.dir}
	r, m := execOne(t, newLayout(t, env, x.Digest))
	if got := content(t, r); got != "a -rw-r--r-- arm\n" {
		t.Errorf("content %q", got)
	}
	if !m.NoRecord {
		t.Error("an image is recorded as if it were made")
	}
}

func TestBrokenLayoutsAreRefused(t *testing.T) {
	l := layoutDir{t, t.TempDir()}
	good := l.image("arm64", testFile{name: "a", content: "x"})
	env := storeEnv(t, t.TempDir())
	env.Layouts = map[string]string{"store": l.dir}

	foreign := l.index(l.image("s390x", testFile{name: "a", content: "x"}))
	loop := foreign
	for range maxIndexDepth + 1 {
		loop.Platform = good.Platform
		loop = l.index(loop)
	}
	for name, d := range map[string]oci.Digest{
		"missing":        digest.FromString("none"),
		"other platform": foreign.Digest,
		"too deep":       loop.Digest,
	} {
		if _, err := newLayout(t, env, d).CacheMap(context.Background(), progress.Discard); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := os.WriteFile(filepath.Join(l.dir, layoutBlob(good.Digest)), []byte(`{"schemaVersion":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := newLayout(t, env, good.Digest).CacheMap(context.Background(), progress.Discard)
	if err == nil || !strings.Contains(err.Error(), "want "+string(good.Digest)) {
		t.Errorf("changed manifest: %v", err)
	}
	if _, err := newLayoutOp(&Env{}, sourceVertex("oci-layout://x@"+string(good.Digest), nil), "x@"+string(good.Digest)); !errdefs.IsNotFound(err) {
		t.Errorf("unknown layout: %v", err)
	}
}
