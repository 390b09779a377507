package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// A registryServer is a docker-registry on loopback.
type registryServer struct {
	address string
	cmd     *exec.Cmd
}

// startRegistry serves dir.
func startRegistry(dir string) (*registryServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registryServer{address: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", dir, r.address)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	r.cmd = exec.Command("docker-registry", "serve", conf)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	err = eventually(20*time.Second, func() error {
		res, err := http.Get("http://" + r.address + "/v2/")
		if err == nil {
			err = res.Body.Close()
		}
		return err
	})
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *registryServer) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// layersOf are the digests of an image's layers in a registry.
func layersOf(registry, image string) ([]string, error) {
	type manifest struct {
		Manifests, Layers []struct{ Digest string }
	}
	read := func(ref string) (m manifest, err error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+registry+"/v2/"+image+"/manifests/"+ref, nil)
		if err != nil {
			return m, err
		}
		for _, t := range []string{"oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2", "docker.distribution.manifest.list.v2"} {
			req.Header.Add("Accept", "application/vnd."+t+"+json")
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return m, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return m, fmt.Errorf("manifest %s/%s:%s: %s", registry, image, ref, res.Status)
		}
		return m, json.NewDecoder(res.Body).Decode(&m)
	}
	m, err := read("latest")
	if err == nil && len(m.Manifests) > 0 {
		m, err = read(m.Manifests[0].Digest)
	}
	var digests []string
	for _, l := range m.Layers {
		digests = append(digests, l.Digest)
	}
	return digests, err
}

// checkPushed compares the pushed image with its source; BuildKit's has a layer
// more, of the step that made it pull.
func (b *bench) checkPushed(registry string) error {
	want, err := layersOf(b.registry, dataImage)
	if err != nil {
		return err
	}
	got, err := layersOf(registry, dataImage)
	if err != nil {
		return err
	}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		return fmt.Errorf("pushed layers are %q, want %q", got, want)
	}
	for _, digest := range got {
		res, err := http.Head("http://" + registry + "/v2/" + dataImage + "/blobs/" + digest)
		if err != nil {
			return err
		}
		if err := res.Body.Close(); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("pushed layer %s: %s", digest, res.Status)
		}
	}
	return nil
}
