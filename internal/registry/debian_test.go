package registry_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"regexp"
	"testing"

	"den/internal/oci"
	"den/internal/registry"
)

// distribution starts Debian's docker-registry and returns its host.
func distribution(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry: apt-get install docker-registry")
	}
	dir := t.TempDir()
	write(t, dir+"/config.yml", fmt.Sprintf(`version: 0.1
storage:
  filesystem:
    rootdirectory: %s
http:
  addr: 127.0.0.1:0
`, dir))
	cmd := exec.Command(program, "serve", dir+"/config.yml")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	var host string
	for host == "" && lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			host = m[1]
		}
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-drained
		_ = cmd.Wait()
	})
	if host == "" {
		t.Fatal("docker-registry does not say where it listens")
	}
	return host
}

func TestDistributionTakesAndGivesImages(t *testing.T) {
	host := distribution(t)
	for name, chunk := range map[string]int64{"at once": 0, "in chunks": 100_000} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *registry.Options) { o.ChunkBytes = chunk })
			repo := fmt.Sprintf("%s/app%d", host, chunk)
			config, layer := []byte(`{"os":"linux"}`), randomBytes(t, 1_000_000)
			b.push(t, repo, config)
			b.push(t, repo, layer)
			b.push(t, repo, nil)
			if ok, err := b.MountBlob(t.Context(), repo+"/mounted", repo, descriptor(layer)); err != nil || !ok {
				t.Errorf("mount: %v, %v", ok, err)
			}
			if ok, err := b.MountBlob(t.Context(), repo+"/mounted", repo+"/other", descriptor(randomBytes(t, 10))); err != nil || ok {
				t.Errorf("mount of what is not there: %v, %v", ok, err)
			}
			manifest := image(config, layer)
			d, err := b.PushManifest(t.Context(), repo+":v1", oci.MediaTypeManifest, manifest)
			if err != nil {
				t.Fatal(err)
			}
			got, err := b.Resolve(t.Context(), repo+":v1")
			if err != nil || got.Digest != d.Digest {
				t.Errorf("resolve: %v, %v", got, err)
			}
			b.wantPull(t, repo+"/mounted", layer)
			if _, err := b.PushManifest(t.Context(), repo+":v2", oci.MediaTypeManifest, image([]byte("not pushed"), layer)); err == nil {
				t.Error("a manifest whose config is missing was taken")
			}
		})
	}
}

// TestDistributionTakesInterruptedUploads breaks connections in front of a
// real registry.
func TestDistributionTakesInterruptedUploads(t *testing.T) {
	target := &url.URL{Scheme: "http", Host: distribution(t)}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { breakOff() }
	var n counter
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPatch {
			if k := n.next(); k == 1 || k == 3 {
				r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 300_000), failing{net.ErrClosed}))
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	b := newBench(t, func(o *registry.Options) { o.ChunkBytes = 400_000 })
	data := bytes.Repeat(randomBytes(t, 1000), 1000)
	b.push(t, host+"/app", data)
	b.wantPull(t, host+"/app", data)
	if n.count() < 4 {
		t.Errorf("only %d requests with a body", n.count())
	}
}
