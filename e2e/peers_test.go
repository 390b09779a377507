package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// dockerd is Debian's, with everything of its own below the run's directory.
type dockerd struct{ dir string }

var theDockerd struct {
	once sync.Once
	dir  string
	err  error
	stop func()
}

// needDockerd starts the one dockerd of the run.
func needDockerd(t *testing.T) dockerd {
	t.Helper()
	needRoot(t)
	need(t, "dockerd", "docker", "containerd")
	d := &theDockerd
	d.once.Do(func() {
		d.dir = filepath.Join(env.dir, "dockerd")
		if d.err = os.MkdirAll(filepath.Join(d.dir, "config"), 0o755); d.err != nil {
			return
		}
		cmd := exec.Command("dockerd", "--data-root", d.dir+"/data", "--exec-root", d.dir+"/exec", "--pidfile", d.dir+"/pid",
			"-H", "unix://"+d.dir+"/sock", "--bridge=none", "--iptables=false", "--ip6tables=false", "--log-level=error")
		d.stop, d.err = startDaemon(cmd, func() error { _, err := dockerd{d.dir}.try("info"); return err })
	})
	if d.err != nil {
		t.Skipf("needs a dockerd that starts: %v", d.err)
	}
	return dockerd{d.dir}
}

// stopDockerd ends what needDockerd started.
func stopDockerd() {
	d := &theDockerd
	if d.stop == nil {
		return
	}
	d.stop()
	unmountBelow(d.dir)
}

// unmountBelow takes away what a peer left mounted below dir.
func unmountBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	var at []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			at = append(at, f[4])
		}
	}
	slices.Reverse(at)
	for _, p := range at {
		_ = exec.Command("umount", "-l", p).Run()
	}
}

func (d dockerd) command(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.dir+"/sock", "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+d.dir+"/config")
	return cmd
}

func (d dockerd) try(args ...string) (string, error) { return output(d.command(args...)) }

func (d dockerd) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// said is what a container has written, on both streams.
func (d dockerd) said(container string) string {
	b, err := d.command("logs", container).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s%v", b, err)
	}
	return string(b)
}

// image builds with the classic builder, pushes, and reads the image back.
func (d dockerd) image(t *testing.T, ctx string) image {
	t.Helper()
	name := newName(t)
	d.run(t, "build", "--network=host", "-t", name, ctx)
	d.run(t, "push", name)
	return fetchImage(t, name)
}

// output runs a peer's command; its error carries what it said.
func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, tail(out.String()), tail(errs.String()))
	}
	return out.String(), nil
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

// containers runs buildah, podman or skopeo with storage of the test's own.
type containers struct {
	t   *testing.T
	dir string
}

func newContainers(t *testing.T) containers {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp(env.dir, "peer-")
	if err != nil {
		t.Fatal(err)
	}
	conf := "unqualified-search-registries=[]\n[[registry]]\nlocation=\"" + needRegistry(t) + "\"\ninsecure=true\n"
	for name, text := range map[string]string{"registries.conf": conf, "policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}`,
		"storage.conf":    "[storage]\ndriver=\"overlay\"\ngraphroot=\"" + dir + "/root\"\nrunroot=\"" + dir + "/run\"\n",
		"containers.conf": "[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\ntmp_dir=\"" + dir + "/tmp\"\nstatic_dir=\"" + dir + "/static\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		unmountBelow(dir)
		if err := clean(dir); err != nil {
			t.Log(err)
		}
	})
	return containers{t, dir}
}

func (c containers) try(tool string, args ...string) (string, error) {
	c.t.Helper()
	need(c.t, tool)
	cmd := exec.Command(tool, args...)
	in := func(name string) string { return filepath.Join(c.dir, name) }
	cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+in("registries.conf"), "CONTAINERS_STORAGE_CONF="+in("storage.conf"), "CONTAINERS_CONF="+in("containers.conf"),
		"HOME="+c.dir, "XDG_RUNTIME_DIR="+c.dir, "TMPDIR="+c.dir)
	cmd.Dir = c.dir
	return output(cmd)
}

func (c containers) run(tool string, args ...string) string {
	c.t.Helper()
	out, err := c.try(tool, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// image builds with buildah in a chroot, pushes, and reads the image back.
func (c containers) image(ctx string) image {
	c.t.Helper()
	name := newName(c.t)
	c.run("buildah", "bud", "-q", "--isolation=chroot", "--format=docker", "--layers", "--network=host", "--cap-add=CAP_MKNOD", "-t", name, ctx)
	c.run("buildah", "push", "-q", name)
	return fetchImage(c.t, name)
}
