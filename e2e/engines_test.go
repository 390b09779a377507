package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// alone makes cmd run in a network namespace of its own, with a loopback device, as
// cred. The program's process id is cmd's.
func alone(cmd *exec.Cmd, cred *syscall.Credential) {
	uid, gid := uint32(0), uint32(0)
	if cred != nil {
		uid, gid = cred.Uid, cred.Gid
	}
	cmd.Args = append([]string{filepath.Join(env.dir, "lonely"), fmt.Sprint(uid), fmt.Sprint(gid), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = cmd.Args[0]
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
}

// start makes e answer, with the image "small", and ends it with the test.
func (e *engine) start(t testing.TB, cmd *exec.Cmd, cred *syscall.Credential) *engine {
	t.Helper()
	alone(cmd, cred)
	stop, err := startDaemon(cmd, func() error {
		if cmd.Process != nil {
			e.pid = cmd.Process.Pid
		}
		out, code := e.sh(t, "docker version")
		if code != 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	// What does not heed SIGTERM, as most programs that are a container's first, holds the end up for ten seconds.
	t.Cleanup(func() { e.sh(t, "docker ps -aq | xargs -r docker rm -f -v") })
	e.must(t, "docker load -q -i "+smallArchive(t)+" && docker tag small:latest other:latest && docker rmi other:latest")
	return e
}

// startRegistry starts a registry on port 5000 of the engine's network namespace.
func (e *engine) startRegistry(t testing.TB) {
	t.Helper()
	need(t, "docker-registry")
	conf := filepath.Join(e.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: ':5000'}\n", filepath.Join(e.dir, "registry"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", e.pid), "--", "docker-registry", "serve", conf)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	stop, err := startDaemon(cmd, func() error {
		if out, code := e.sh(t, "wget -q -O - http://127.0.0.1:5000/v2/"); code != 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// smallArchive is the image small as docker save writes it.
var smallArchive = once(func() (string, error) {
	tar, err := smallLayer()
	if err != nil {
		return "", err
	}
	file := filepath.Join(env.cache, "small-archive.tar")
	return file, writeArchive(file, "small:latest", containerConfig{Env: []string{basePath}, Cmd: []string{"sh"}}, tar)
})

// newDockerd is the distribution's dockerd in a network namespace of its own, where its bridge is.
func newDockerd(t testing.TB) *engine {
	t.Helper()
	needRoot(t)
	need(t, "dockerd", "containerd", "iptables")
	return startEngineOf(t, "dockerd", exec.Command("dockerd"))
}

// newerDockerd is the dockerd of today that DEN_E2E_DOCKERD names, with its containerd and shim beside it: CONTRIBUTING.md
// says how to build them from clients/dockerd. Transcripts call it moby. It is empty where only the distribution's is compared.
func newerDockerd() string { return os.Getenv("DEN_E2E_DOCKERD") }

// newMoby is newerDockerd in a network namespace of its own. It answers all versions that it knows, and its containers have
// no time namespaces, which runc of the distribution does not know.
func newMoby(t testing.TB) *engine {
	t.Helper()
	needRoot(t)
	need(t, "runc", "iptables")
	cmd := exec.Command(newerDockerd(), "--feature=time-namespaces=false")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(newerDockerd())+":"+os.Getenv("PATH"), "DOCKER_MIN_API_VERSION=1.24")
	return startEngineOf(t, "moby", cmd)
}

func startEngineOf(t testing.TB, name string, cmd *exec.Cmd) *engine {
	t.Helper()
	dir, err := os.MkdirTemp(env.dir, name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountBelow(dir) })
	cmd.Args = append(cmd.Args, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", "unix://"+dir+"/sock", "--log-level=error")
	return (&engine{name: name, host: "unix://" + dir + "/sock", dir: workDir(t)}).start(t, cmd, nil)
}

// serve starts den serve of d; name is its rung's.
func (d *den) serve(name string, flags ...string) *engine {
	d.t.Helper()
	sock := filepath.Join(d.home, "docker.sock")
	// Not the test's context: that ends before its cleanups, and a den that is killed leaves its containers.
	cmd := d.command(context.Background(), append([]string{"serve", "-H", "unix://" + sock}, flags...)...)
	e := &engine{name: name, host: "unix://" + sock, dir: workDir(d.t)}
	return e.start(d.t, cmd, d.cred)
}

// everyEngine runs a test on den serve of every rung, and on each dockerd.
func everyEngine(t *testing.T, test func(t *testing.T, e *engine)) {
	everyDockerd(t, test)
	everyServe(t, test)
}

// everyDockerd runs a test on the distribution's dockerd, and on the newer one if there is one.
func everyDockerd(t *testing.T, test func(t *testing.T, e *engine)) {
	t.Run("dockerd", func(t *testing.T) { t.Parallel(); test(t, newDockerd(t)) })
	if newerDockerd() != "" {
		t.Run("moby", func(t *testing.T) { t.Parallel(); test(t, newMoby(t)) })
	}
}

// everyServe runs a test on den serve of every rung.
func everyServe(t *testing.T, test func(t *testing.T, e *engine)) {
	needRoot(t)
	t.Run("privileged", func(t *testing.T) { t.Parallel(); test(t, newDen(t).serve("privileged")) })
	t.Run("userns", func(t *testing.T) { t.Parallel(); test(t, newPlainDen(t).serve("userns")) })
	t.Run("sentry", func(t *testing.T) { t.Parallel(); test(t, newSentryDen(t).serve("sentry")) })
}

// What people type shows the same on den as on dockerd, but for what the transcripts say.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	everyEngine(t, func(t *testing.T, e *engine) {
		for _, file := range transcripts(t, "engine") {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { e.play(t, file) })
		}
	})
}

// writeArchive writes an image of one layer, as docker save does.
func writeArchive(file, tag string, c containerConfig, layer string) error {
	b, err := os.ReadFile(layer)
	if err != nil {
		return err
	}
	img := config{Created: "2026-01-01T00:00:00Z", Architecture: goarch(), OS: "linux", Config: c, History: []history{{Created: "2026-01-01T00:00:00Z", CreatedBy: "the test"}}}
	img.RootFS.Type, img.RootFS.DiffIDs = "layers", []string{digestOf(b)}
	conf, err := json.Marshal(img)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(digestOf(conf), "sha256:") + ".json"
	index, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{tag}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tarWriter{tar.NewWriter(f)}
	w.file("layer.tar", string(b))
	w.file(name, string(conf))
	w.file("manifest.json", string(index))
	return errors.Join(w.Close(), f.Close())
}
