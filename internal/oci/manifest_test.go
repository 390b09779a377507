package oci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	emptyDescriptor = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + someDigest + `","size":2}`
	emptyConfig     = `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + someDigest + `","size":2}`
)

func TestManifestsOfBothKindsAreRead(t *testing.T) {
	for _, tc := range []struct{ doc, declared, want string }{
		{`{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `","config":` + emptyConfig + `,"layers":[` + emptyDescriptor + `]}`, "", MediaTypeManifest},
		{`{"schemaVersion":2,"config":` + emptyConfig + `,"layers":[` + emptyDescriptor + `]}`, MediaTypeManifest, MediaTypeManifest},
		{`{"schemaVersion":2,"config":` + emptyConfig + `,"layers":[` + emptyDescriptor + `]}`, "application/json", MediaTypeManifest},
		{`{"schemaVersion":2,"mediaType":"` + MediaTypeDockerManifest + `","config":` + emptyConfig + `,"layers":[` + emptyDescriptor + `]}`, MediaTypeDockerManifest + "; charset=utf-8", MediaTypeDockerManifest},
	} {
		m, err := ParseManifest([]byte(tc.doc), tc.declared)
		if err != nil || m.MediaType != tc.want || len(m.Layers) != 1 || m.Config.Size != 2 {
			t.Errorf("%s: got %+v, %v", tc.doc, m, err)
		}
		if _, err := ParseIndex([]byte(tc.doc), tc.declared); err == nil {
			t.Errorf("%s was read as an index", tc.doc)
		}
	}
	x, err := ParseIndex([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+MediaTypeManifest+`","digest":"`+someDigest+`","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`), MediaTypeDockerIndex)
	if err != nil || x.MediaType != MediaTypeDockerIndex || x.Manifests[0].Platform.Architecture != "amd64" {
		t.Errorf("index: %+v, %v", x, err)
	}
}

func TestManifestBombsAreRefused(t *testing.T) {
	manifest := func(layers string) string {
		return `{"schemaVersion":2,"config":` + emptyConfig + `,"layers":[` + layers + `]}`
	}
	list := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	for name, doc := range map[string]string{
		"too large":           manifest(emptyDescriptor) + strings.Repeat(" ", MaxManifestBytes),
		"too many layers":     manifest(list(MaxLayers+1, emptyDescriptor)),
		"too deep":            `{"schemaVersion":2,"config":` + strings.Repeat(`{"a":`, 50) + `1` + strings.Repeat(`}`, 50) + `}`,
		"too many manifests":  `{"schemaVersion":2,"manifests":[` + list(MaxManifests+1, `{"mediaType":"x","digest":"`+someDigest+`","size":1}`) + `]}`,
		"a huge manifest":     `{"schemaVersion":2,"manifests":[{"mediaType":"` + MediaTypeManifest + `","digest":"` + someDigest + `","size":99999999}]}`,
		"a huge config":       `{"schemaVersion":2,"config":{"mediaType":"` + MediaTypeConfig + `","digest":"` + someDigest + `","size":99999999},"layers":[]}`,
		"a negative size":     manifest(`{"mediaType":"x","digest":"` + someDigest + `","size":-1}`),
		"sizes that overflow": manifest(list(3, `{"mediaType":"x","digest":"`+someDigest+`","size":8000000000000}`)),
		"no digest":           manifest(`{"mediaType":"x","size":1}`),
		"a path as digest":    manifest(`{"mediaType":"x","digest":"sha256:../../etc/passwd","size":1}`),
		"sha512":              manifest(`{"mediaType":"x","digest":"sha512:` + strings.Repeat("a", 128) + `","size":1}`),
		"two documents":       manifest(emptyDescriptor) + `{}`,
		"both kinds":          `{"schemaVersion":2,"config":` + emptyConfig + `,"layers":[],"manifests":[]}`,
		"neither kind":        `{"schemaVersion":2}`,
		"schema 1":            `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + someDigest + `"}]}`,
		"schema 3":            `{"schemaVersion":3,"manifests":[]}`,
		"a type that is not":  `{"schemaVersion":2,"mediaType":"` + MediaTypeIndex + `","config":` + emptyConfig + `,"layers":[]}`,
		"not an object":       `[]`,
		"nothing":             ``,
		"too many notes":      `{"schemaVersion":2,"config":` + emptyConfig + `,"layers":[],"annotations":{` + notes(maxAnnotations+1) + `}}`,
	} {
		if m, err := ParseManifest([]byte(doc), ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: as a manifest: %v, %v", name, m, err)
		}
		if x, err := ParseIndex([]byte(doc), ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: as an index: %v, %v", name, x, err)
		}
	}
	if _, err := ParseManifest(make([]byte, MaxManifestBytes+1), ""); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func notes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"k%d":""`, i)
	}
	return b.String()[1:]
}

func TestWhatIsDeclaredAndWhatIsSaidMustAgree(t *testing.T) {
	doc := []byte(`{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `","config":` + emptyConfig + `,"layers":[]}`)
	if _, err := ParseManifest(doc, MediaTypeDockerManifest); err == nil {
		t.Error("declared as Docker's, says OCI: was taken")
	}
	if _, err := ParseManifest(doc, "text/plain"); err != nil {
		t.Errorf("declared as anything: %v", err)
	}
}

func TestLayerMediaTypesNameTheirCompression(t *testing.T) {
	for mediaType, want := range map[string]string{
		MediaTypeLayer: "uncompressed", MediaTypeLayerGzip: "gzip", MediaTypeLayerZstd: "zstd",
		MediaTypeDockerLayer: "uncompressed", MediaTypeDockerLayerGzip: "gzip", MediaTypeDockerLayerZstd: "zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    "gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
		"application/vnd.oci.image.layer.v1.tar+brotli":                "",
		"application/vnd.oci.image.layer.v1.tarx":                      "",
		MediaTypeConfig: "",
		"":              "",
		"application/vnd.docker.image.rootfs.diff.tar.gzip; charset=no ": "",
	} {
		got, ok := Compression(mediaType)
		if got != want || ok != (want != "") || IsLayer(mediaType) != ok {
			t.Errorf("%s: %q, %v", mediaType, got, ok)
		}
	}
	for _, m := range []string{MediaTypeManifest, MediaTypeDockerManifest} {
		for _, c := range []string{"gzip", "zstd", "uncompressed"} {
			mediaType, err := LayerMediaType(m, c)
			if got, _ := Compression(mediaType); err != nil || got != c {
				t.Errorf("%s in %s: %s, %v", c, m, mediaType, err)
			}
		}
	}
	if _, err := LayerMediaType(MediaTypeManifest, "lzma"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("lzma: %v", err)
	}
	if !IsForeign("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") || IsForeign(MediaTypeLayer) {
		t.Error("foreign layers are not told apart")
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":`+emptyConfig+`,"layers":[`+emptyDescriptor+`]}`), MediaTypeManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[`+emptyDescriptor+`]}`), MediaTypeIndex)
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	f.Fuzz(func(t *testing.T, doc []byte, declared string) {
		m, errM := ParseManifest(doc, declared)
		x, errX := ParseIndex(doc, declared)
		if errM == nil && errX == nil {
			t.Errorf("read as both: %q", doc)
		}
		if errM == nil {
			for _, d := range append(m.Layers, m.Config) {
				if CheckDescriptor(d) != nil {
					t.Errorf("bad descriptor %+v got through", d)
				}
			}
		}
		if errX == nil && !IsIndex(x.MediaType) {
			t.Errorf("index of type %q", x.MediaType)
		}
	})
}
