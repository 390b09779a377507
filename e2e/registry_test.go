package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startRegistry runs Debian's docker-registry on a free loopback port; without
// the program the tests that need it skip.
func startRegistry() (func(), error) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		return func() {}, nil
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(env.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(env.dir, "registry"), addr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	stop, err := startDaemon(cmd, func() error { return answers("http://" + addr + "/v2/") })
	if err != nil {
		return nil, err
	}
	env.registry = addr
	return stop, nil
}

// freeAddr is a loopback host:port that nobody listens on.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func answers(url string) error {
	res, err := http.Get(url)
	if err == nil {
		res.Body.Close()
	}
	return err
}

// startDaemon starts a program that dies with the tests and waits until it is ready.
func startDaemon(cmd *exec.Cmd, ready func() error) (stop func(), err error) {
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started it, and a test may end
		// the thread that it was run on: this one stays.
		runtime.LockOSThread()
		started <- cmd.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	deadline := time.After(40 * time.Second)
	for {
		err := ready()
		if err == nil {
			return stop, nil
		}
		select {
		case end := <-ended:
			return nil, fmt.Errorf("%s: %v\n%s", cmd.Path, end, &said)
		case <-deadline:
			stop()
			return nil, fmt.Errorf("%s is not ready: %w\n%s", cmd.Path, err, &said)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant,omitempty"`
	} `json:"platform,omitempty"`
}

// A manifest is an image's or an index.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// config is what an image says of itself, as far as tests look.
type config struct {
	Created      string          `json:"created"`
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Config       containerConfig `json:"config"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created    string `json:"created"`
	CreatedBy  string `json:"created_by"`
	EmptyLayer bool   `json:"empty_layer,omitempty"`
}

type containerConfig struct {
	User         string
	ExposedPorts map[string]struct{}
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{}
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	OnBuild      []string
	Shell        []string
	Healthcheck  *struct {
		Test                           []string
		Interval, Timeout, StartPeriod time.Duration
		Retries                        int
	}
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// pushBase puts an image of these layer tars (paths) into the test registry, by
// no code of den's.
func pushBase(name string, c containerConfig, tars ...string) (string, error) {
	if env.registry == "" {
		return "", errMissing("docker-registry")
	}
	img := config{Created: "2026-01-01T00:00:00Z", Architecture: goarch(), OS: "linux", Config: c}
	img.RootFS.Type = "layers"
	m := manifest{SchemaVersion: 2, MediaType: dockerManifest}
	for _, path := range tars {
		diffID, d, err := pushLayer(name, path)
		if err != nil {
			return "", err
		}
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, diffID)
		img.History = append(img.History, history{Created: img.Created, CreatedBy: "the test"})
		m.Layers = append(m.Layers, d)
	}
	body, err := json.Marshal(img)
	if err != nil {
		return "", err
	}
	m.Config = descriptor{MediaType: dockerConfig, Digest: digestOf(body), Size: int64(len(body))}
	if err := upload(name, m.Config.Digest, bytes.NewReader(body)); err != nil {
		return "", err
	}
	return env.registry + "/" + name, putManifest(name, "latest", m)
}

func pushLayer(name, path string) (diffID string, d descriptor, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", d, err
	}
	defer f.Close()
	var packed bytes.Buffer
	plain, sum := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(&packed, sum), gzip.BestSpeed)
	if err != nil {
		return "", d, err
	}
	if _, err := io.Copy(io.MultiWriter(z, plain), f); err != nil {
		return "", d, err
	}
	if err := z.Close(); err != nil {
		return "", d, err
	}
	d = descriptor{MediaType: dockerLayer, Digest: fmt.Sprintf("sha256:%x", sum.Sum(nil)), Size: int64(packed.Len())}
	return fmt.Sprintf("sha256:%x", plain.Sum(nil)), d, upload(name, d.Digest, &packed)
}

func upload(name, digest string, body io.Reader) error {
	base := "http://" + env.registry
	res, err := http.Post(base+"/v2/"+name+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	res.Body.Close()
	to := res.Header.Get("Location")
	if !strings.HasPrefix(to, "http") {
		to = base + to
	}
	return put(to+"&digest="+digest, "application/octet-stream", body)
}

func putManifest(name, tag string, m manifest) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return put("http://"+env.registry+"/v2/"+name+"/manifests/"+tag, m.MediaType, bytes.NewReader(body))
}

func put(url, mediaType string, body io.Reader) error {
	req, err := http.NewRequest(http.MethodPut, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return fmt.Errorf("PUT %s: %s\n%s", url, res.Status, text)
	}
	return nil
}

// fetch reads one manifest or blob of the test registry.
func fetch(t testing.TB, name, kind, ref string) []byte {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+env.registry+"/v2/"+name+"/"+kind+"/"+ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", strings.Join([]string{ociManifest, ociIndex, dockerManifest, dockerList}, ", "))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err := errors.Join(err, statusError(res)); err != nil {
		t.Fatalf("GET %s: %v\n%.500s", req.URL, err, b)
	}
	return b
}

func statusError(res *http.Response) error {
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// fetchManifest reads a manifest and its digest; ref is REGISTRY/NAME[:TAG].
func fetchManifest(t testing.TB, ref string) (manifest, string) {
	t.Helper()
	name, tag := splitRef(ref)
	b := fetch(t, name, "manifests", tag)
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m, digestOf(b)
}

func splitRef(ref string) (name, tag string) {
	name = strings.TrimPrefix(ref, env.registry+"/")
	if n, digest, ok := strings.Cut(name, "@"); ok {
		return n, digest
	}
	if n, tag, ok := strings.Cut(name, ":"); ok {
		return n, tag
	}
	return name, "latest"
}

// An image is one of the test registry's, read back whole.
type image struct {
	manifest manifest
	digest   string // of the manifest
	config   config
	tree     tree
}

// fetchImage reads the image at ref, checks every digest and flattens its layers.
func fetchImage(t testing.TB, ref string) image {
	t.Helper()
	m, digest := fetchManifest(t, ref)
	name, _ := splitRef(ref)
	img := image{manifest: m, digest: digest, tree: tree{}}
	raw := fetch(t, name, "blobs", m.Config.Digest)
	if got := digestOf(raw); got != m.Config.Digest {
		t.Errorf("%s: the configuration's digest is %s, want %s", ref, got, m.Config.Digest)
	}
	if err := json.Unmarshal(raw, &img.config); err != nil {
		t.Fatal(err)
	}
	if len(img.config.RootFS.DiffIDs) != len(m.Layers) {
		t.Fatalf("%s: %d layers, %d diffIDs", ref, len(m.Layers), len(img.config.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		b := fetch(t, name, "blobs", l.Digest)
		if digestOf(b) != l.Digest || int64(len(b)) != l.Size {
			t.Errorf("%s: layer %d is not what its descriptor says", ref, i)
		}
		plain := decompress(t, b)
		if got := digestOf(plain); got != img.config.RootFS.DiffIDs[i] {
			t.Errorf("%s: the diffID of layer %d is %s, want %s", ref, i, got, img.config.RootFS.DiffIDs[i])
		}
		img.tree.apply(t, bytes.NewReader(plain))
	}
	return img
}
