package e2e

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// reaperArchive is the image of the reaper under the names that Testcontainers for Go and for Node ask for.
var reaperArchive = once(func() (string, error) {
	program := filepath.Join(env.cache, "reaper")
	if err := build(".", program, "./reaper"); err != nil {
		return "", err
	}
	layer := filepath.Join(env.cache, "reaper.tar")
	f, err := os.Create(layer)
	if err != nil {
		return "", err
	}
	w := tarWriter{tar.NewWriter(f)}
	w.program("reaper", program)
	if err := w.Close(); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	file := filepath.Join(env.cache, "reaper-archive.tar")
	return file, writeArchive(file, "testcontainers/ryuk:0.14.0", containerConfig{Entrypoint: []string{"/reaper"}}, layer)
})

// nodeModules are dockerode and Testcontainers for Node, from npm's registry.
var nodeModules = once(func() (string, error) {
	if _, err := exec.LookPath("npm"); err != nil {
		return "", errMissing("npm")
	}
	dir := filepath.Join(env.cache, "node")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules/testcontainers")); err == nil {
		return dir, nil
	}
	if err := copyFile("clients/scripts/package.json", filepath.Join(dir, "package.json")); err != nil {
		return "", err
	}
	cmd := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errMissing("packages of npm's registry: " + string(out))
	}
	return dir, nil
})

var testcontainersTest = once(func() (string, error) {
	out := filepath.Join(env.cache, "testcontainers.test")
	cmd := exec.Command("go", "test", "-c", "-o", out, ".")
	cmd.Dir = "clients/testcontainers"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	b, err := cmd.CombinedOutput()
	if err != nil {
		return "", errMissing("testcontainers-go: " + string(b))
	}
	return out, nil
})

// Programs of others find what they expect, by their own libraries.
func TestClientLibraries(t *testing.T) {
	t.Parallel()
	everyEngine(t, func(t *testing.T, e *engine) {
		e.must(t, "docker load -q -i "+reaperArchive(t)+" && docker tag testcontainers/ryuk:0.14.0 testcontainers/ryuk:0.11.0")
		// In a container Testcontainers looks for published ports at the bridge's address, which
		// is one of the machine's own on the rung privileged alone.
		socket := []string{"TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE=" + strings.TrimPrefix(e.host, "unix://"), "TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1", "TC_HOST=127.0.0.1"}
		t.Run("go", func(t *testing.T) {
			out := e.must(t, testcontainersTest(t)+" -test.v -test.timeout=4m", socket...)
			if !strings.Contains(out, "PASS: TestMobyClient") {
				t.Error(out)
			}
			e.must(t, "for i in $(seq 300); do docker inspect abandoned >/dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1")
		})
		t.Run("node", func(t *testing.T) {
			modules := nodeModules(t)
			script, err := filepath.Abs("clients/scripts/dockerode.js")
			if err != nil {
				t.Fatal(err)
			}
			if err := copyFile(script, filepath.Join(modules, "dockerode.js")); err != nil {
				t.Fatal(err)
			}
			e.must(t, "node "+modules+"/dockerode.js", socket...)
		})
		t.Run("python", func(t *testing.T) {
			if err := exec.Command("python3", "-c", "import docker").Run(); err != nil {
				t.Skip("needs python3-docker")
			}
			script, err := filepath.Abs("clients/scripts/docker_py.py")
			if err != nil {
				t.Fatal(err)
			}
			e.must(t, "python3 "+script)
		})
	})
}
