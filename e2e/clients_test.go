package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// clients are the real ones, built from their own sources in modules of their own.
var clients = []struct{ module, pkg, name, version string }{
	{"dockercli", "github.com/docker/cli/cmd/docker", "docker", "-X github.com/docker/cli/cli/version.Version=28.2.2"},
	{"compose5", "github.com/docker/compose/v5/cmd", "docker-compose", "-X github.com/docker/compose/v5/internal.Version=5.6.0"},
	{"compose2", "github.com/docker/compose/v2/cmd", "docker-compose-v2", "-X github.com/docker/compose/v2/internal.Version=2.40.3"},
}

var builtClients = once(func() (string, error) {
	bin := filepath.Join(env.cache, "clients")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, c := range clients {
		out := filepath.Join(bin, c.name)
		if _, err := os.Stat(out); err == nil { // in a cache that is kept
			continue
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w "+c.version, "-o", out+".part", c.pkg)
		cmd.Dir = filepath.Join("clients", c.module)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build %s: %w\n%s", c.pkg, err, b)
		}
		if err := os.Rename(out+".part", out); err != nil {
			return "", err
		}
	}
	return bin, nil
})

// clientPath is the directory of the real clients.
func clientPath(t testing.TB) string { t.Helper(); return builtClients(t) }

// workDir is a directory for who types commands.
func workDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(env.dir, "work-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}
