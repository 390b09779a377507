// Package e2e drives den as its users do: the binary, real registries, real
// peers (dockerd, buildah, skopeo, podman), real Debian images.
//
// Each test has a store of its own unless it says otherwise. What a machine
// lacks is a skip that names the missing fact.
package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// shared is what all tests of a run use; TestMain makes it.
type shared struct {
	dir      string // deleted at the end
	cache    string // base images: deleted too, or $DEN_E2E_CACHE
	den      string // the binary under test
	registry string // host:port of a docker-registry, "" where there is none
}

var env shared

func TestMain(m *testing.M) {
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	syscall.Umask(0o022)
	if env.dir, err = os.MkdirTemp("", "den-e2e-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, clean(env.dir)) }()
	if err := os.Chmod(env.dir, 0o755); err != nil { // the plain user reads the binary
		return 1, err
	}
	env.cache = os.Getenv("DEN_E2E_CACHE")
	if env.cache == "" {
		env.cache = filepath.Join(env.dir, "cache")
	}
	if err := os.MkdirAll(env.cache, 0o755); err != nil {
		return 1, err
	}
	env.den = filepath.Join(env.dir, "den")
	if given := os.Getenv("DEN_E2E_BINARY"); given != "" {
		err = copyFile(given, env.den)
	} else {
		err = build("..", env.den, "./cmd/den")
	}
	if err != nil {
		return 1, err
	}
	if err := build(".", filepath.Join(env.dir, "measure"), "./measure"); err != nil {
		return 1, err
	}
	if err := build(".", filepath.Join(env.dir, "lonely"), "./lonely"); err != nil {
		return 1, err
	}
	stop, err := startRegistry()
	if err != nil {
		return 1, err
	}
	code = m.Run()
	stopDockerd()
	stop()
	return code, endLeft(env.dir)
}

// clean removes dir, also what was written read-only.
func clean(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o755)
		}
		return nil
	})
	for range 20 {
		if err := os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // a den that has ended may leave a process that syncs its store
	}
	return os.RemoveAll(dir)
}

// copyFile copies a program; the plain user may not reach the original.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// build compiles a static program.
func build(dir, out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return nil
}
