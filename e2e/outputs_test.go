package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// newProxy is a forward proxy that sends every request to one host.
func newProxy(t *testing.T, to string) (url string, seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var urls []string
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", to }}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		urls = append(urls, r.URL.String())
		mu.Unlock()
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []string { mu.Lock(); defer mu.Unlock(); return urls }
}

func readIndex(t *testing.T, layout string) manifest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

const outputDockerfile = `FROM @small
RUN echo run > /run.txt && chown 33:33 /run.txt && chmod 4755 /run.txt && ln -s run.txt /link
COPY f /f
`

func TestLocalAndTarOutputsAreTheFlattenedTree(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"Dockerfile": outputDockerfile, "f": "f"})
		out := filepath.Join(d.home, "out")
		d.run("build", "-o", out, ctx)
		checkFile(t, filepath.Join(out, "run.txt"), "run\n")
		if l, err := os.Readlink(filepath.Join(out, "link")); err != nil || l != "run.txt" {
			t.Errorf("the link leads to %q, %v", l, err)
		}
		got := d.feed(nil, "build", "-o", "-", ctx)
		tr := tree{}
		tr.apply(t, strings.NewReader(got))
		tr.is(t, "run.txt", "file 4755 33:33")
		tr.holds(t, "f", "f")
		second := filepath.Join(d.home, "second.tar")
		d.run("build", "-o", "type=local,dest="+out+"2", "-o", "type=tar,dest="+second, ctx)
		equal(t, "two outputs", tr.below("").names(), readTree(t, second).names())
	})
}

// layoutImage reads an image of an OCI layout directory.
func layoutImage(t *testing.T, dir string, want descriptor) (manifest, config, []byte) {
	t.Helper()
	blob := func(d descriptor) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "blobs", strings.Replace(d.Digest, ":", "/", 1)))
		if err != nil || digestOf(b) != d.Digest || int64(len(b)) != d.Size {
			t.Fatalf("blob %+v: %v", d, err)
		}
		return b
	}
	var m manifest
	var c config
	if err := json.Unmarshal(blob(want), &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(m.Config), &c); err != nil {
		t.Fatal(err)
	}
	return m, c, blob(m.Layers[len(m.Layers)-1])
}

func TestOCIOutputsWithEveryCompression(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": outputDockerfile, "f": "f"})
	var diffIDs []string
	for attrs, want := range map[string]struct{ magic, suffix string }{
		"compression=gzip,compression-level=9,force-compression=true": {"\x1f\x8b", "tar+gzip"},
		"compression=zstd,compression-level=3,force-compression=true": {"\x28\xb5\x2f\xfd", "tar+zstd"},
		"compression=uncompressed,force-compression=true":             {"f", "layer.v1.tar"},
	} {
		dir, err := os.MkdirTemp(d.home, "layout-")
		if err != nil {
			t.Fatal(err)
		}
		d.run("build", "-t", "some/name:1", "-o", "type=oci,tar=false,dest="+dir+","+attrs, ctx)
		index := readIndex(t, dir)
		m, c, last := layoutImage(t, dir, index.Manifests[0])
		if !bytes.HasPrefix(last, []byte(want.magic)) {
			t.Errorf("%s: the layer begins %x", attrs, last[:4])
		}
		for _, l := range m.Layers {
			if !strings.HasSuffix(l.MediaType, want.suffix) {
				t.Errorf("%s: a layer is %s", attrs, l.MediaType)
			}
		}
		if diffIDs == nil {
			diffIDs = c.RootFS.DiffIDs
		}
		equal(t, attrs, diffIDs, c.RootFS.DiffIDs)
		if n := index.Manifests[0].Annotations["org.opencontainers.image.ref.name"]; n == "" {
			t.Errorf("%s: the image has no name: %v", attrs, index.Manifests[0].Annotations)
		}
	}
}

func TestDockerOutputsAreArchivesThatDockerReads(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	file := filepath.Join(d.home, "image.tar")
	d.run("build", "-t", "some/name:1", "-t", "other:2", "-o", "type=docker,dest="+file, d.dir(files{"Dockerfile": outputDockerfile, "f": "f"}))
	entries := tarFiles(t, file)
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(entries["manifest.json"], &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || len(list[0].RepoTags) != 2 || len(list[0].Layers) != 3 {
		t.Errorf("manifest.json is %+v", list)
	}
	for _, l := range append(list[0].Layers, list[0].Config) {
		if _, ok := entries[l]; !ok {
			t.Errorf("%s is not in the archive", l)
		}
	}
}

// tarFiles are the regular files of a tar.
func tarFiles(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIDAndMetadataFilesNameTheImage(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": outputDockerfile, "f": "f"})
	iid, meta := filepath.Join(d.home, "iid"), filepath.Join(d.home, "meta")
	name := newName(t)
	out := d.run("build", "-q", "--iidfile", iid, "--metadata-file", meta, "--push", "-t", name, ctx)
	b, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	manifest, digest := fetchManifest(t, name)
	if m["containerimage.digest"] != digest || m["containerimage.config.digest"] != manifest.Config.Digest || m["image.name"] != name+":latest" {
		t.Errorf("metadata are %s\nthe manifest is %s, its configuration %s", b, digest, manifest.Config.Digest)
	}
	id, err := os.ReadFile(iid)
	if err != nil || strings.TrimSpace(out) != string(id) || string(id) != digest && string(id) != manifest.Config.Digest {
		t.Errorf("the ID file says %q, den %q: %v", id, out, err)
	}
}

func TestPushIsToEveryNameAndOutputsTakeAttributes(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": outputDockerfile, "f": "f"})
	one, two := newName(t), newName(t)
	d.run("build", "-o", fmt.Sprintf(`type=image,"name=%s,%s",push=true,compression=zstd,force-compression=true,oci-mediatypes=true`, one, two), ctx)
	first, second := fetchImage(t, one), fetchImage(t, two)
	if first.digest != second.digest || first.manifest.MediaType != ociManifest || !strings.HasSuffix(first.manifest.Layers[0].MediaType, "zstd") {
		t.Errorf("%s: %+v\n%s: %+v", one, first.manifest, two, second.manifest)
	}
	d.run("build", "-o", "type=image,name="+one+":docker,push=true,oci-mediatypes=false", ctx)
	if m, _ := fetchManifest(t, one+":docker"); m.MediaType != dockerManifest {
		t.Errorf("the manifest is %s", m.MediaType)
	}
	if list := d.run("images", "-q"); strings.TrimSpace(list) == "" {
		t.Error("the images are not in the store")
	}
	d.fails([]string{"build", "-o", "type=imgae", ctx}, "imgae")
}

func TestPlatformsBecomeAnIndex(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM --platform=$BUILDPLATFORM @small AS build\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\nFROM scratch\nCOPY --from=build /arch /arch\n"})
	name := newName(t)
	d.run("build", "--platform", "linux/amd64,linux/arm64", "--push", "-t", name, ctx)
	index, _ := fetchManifest(t, name)
	var got []string
	for _, m := range index.Manifests {
		if m.Platform == nil {
			t.Fatalf("%+v has no platform", m)
		}
		img := fetchImage(t, env.registry+"/"+strings.SplitN(strings.TrimPrefix(name, env.registry+"/"), ":", 2)[0]+"@"+m.Digest)
		got = append(got, m.Platform.OS+"/"+m.Platform.Architecture+" "+img.config.Architecture)
		img.tree.holds(t, "arch", img.config.Architecture+"\n")
	}
	equal(t, "platforms", []string{"linux/amd64 amd64", "linux/arm64 arm64"}, got)
	out := filepath.Join(d.home, "local")
	d.run("build", "--platform", "linux/amd64,linux/arm64", "-o", out, ctx)
	checkFile(t, filepath.Join(out, "linux_arm64", "arch"), "arm64\n")
}

func TestForeignArchitecturesSayHowToRunThem(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"s390x", "riscv64", "arm64"} {
		if arch == runtime.GOARCH || registered(arch) {
			continue
		}
		d := newDen(t)
		d.fails([]string{"build", "--platform", "linux/" + arch, d.dir(files{"Dockerfile": "FROM scratch\nCOPY f /bin/sh\nRUN true\n", "f": "f"})},
			"linux/"+arch, "binfmt")
		return
	}
	t.Skip("needs an architecture that this machine cannot run")
}

// Where no emulator helps, which the sentry never lets, nobody waits for other stages to learn it.
func TestForeignArchitecturesAreRefusedBeforeWorkIsLost(t *testing.T) {
	t.Parallel()
	d := newSentryDen(t)
	arch := "arm64"
	if runtime.GOARCH == arch {
		arch = "amd64"
	}
	foreign, maker := newName(t), newDen(t)
	maker.run("build", "--platform=linux/"+arch, "--push", "-t", foreign, maker.dir(files{"f": "f", "Dockerfile": "FROM scratch\nCOPY f /bin/sh\n"}))
	ctx := d.dir(files{"f": "f", "Dockerfile": "FROM --platform=$BUILDPLATFORM @small AS slow\nRUN sleep 600\nFROM " + foreign + "\nCOPY f /f\nCOPY --from=slow /bin/sh /x\nRUN true\n"})
	r := d.try(nil, "build", "--progress=plain", "--platform", "linux/"+arch, ctx)
	if r.code == 0 || !strings.Contains(r.err, "the sentry knows no emulators") {
		t.Errorf("exit %d:\n%s", r.code, r.err)
	}
	if r.took > time.Minute || strings.Contains(r.err, "B / ") {
		t.Errorf("after %v:\n%s", r.took, r.err)
	}
}

// registered reports whether binfmt_misc has an interpreter for arch.
func registered(arch string) bool {
	name := map[string]string{"arm64": "aarch64"}[arch]
	if name == "" {
		name = arch
	}
	_, err := os.Stat("/proc/sys/fs/binfmt_misc/qemu-" + name)
	return err == nil
}
