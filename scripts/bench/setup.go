package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// setUp makes the base images, a registry that serves them, and the contexts.
func (b *bench) setUp(base string) (stop func(), err error) {
	if stop, err = b.startRegistry(); err != nil {
		return nil, err
	}
	if base == "" {
		base = filepath.Join(b.dir, "debian.tar")
		if out, err := exec.Command("mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", base).CombinedOutput(); err != nil {
			return stop, fmt.Errorf("mmdebstrap: %w\n%s", err, out)
		}
	}
	root := filepath.Join(b.dir, "root") // the floor's lower directory
	if err := os.Mkdir(root, 0o755); err != nil {
		return stop, err
	}
	store := []string{"DEN_STORE=" + filepath.Join(b.dir, "setup")}
	golang := filepath.Join(b.dir, "golang")
	for _, args := range [][]string{
		{"tar", "-xf", base, "-C", root},
		{b.den, "import", base, b.registry + "/debian"},
		{b.den, "push", "-q", b.registry + "/debian"},
		{"mkdir", "-p", golang},
		{"sh", "-c", `printf 'FROM ` + b.registry + `/debian\nCOPY . /usr/local/go\n' > ` + golang + `/Dockerfile`},
		{b.den, "build", "-q", "-f", golang + "/Dockerfile", "-t", b.registry + "/golang", goRoot()},
		{b.den, "push", "-q", b.registry + "/golang"},
	} {
		if _, err := measure(b.dir, store, args...); err != nil {
			return stop, err
		}
	}
	return stop, b.contexts()
}

func goRoot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "/usr/local/go"
	}
	return strings.TrimSpace(string(out))
}

func (b *bench) startRegistry() (func(), error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.registry = l.Addr().String()
	l.Close()
	conf := filepath.Join(b.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(b.dir, "registry"), b.registry)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() { cmd.Process.Kill(); cmd.Wait() }
	return stop, waitFor(20*time.Second, func() bool {
		res, err := http.Get("http://" + b.registry + "/v2/")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
}

func waitFor(limit time.Duration, ready func() bool) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ready() {
			return nil
		}
	}
	return fmt.Errorf("nothing answered within %s", limit)
}

// freshFS mounts a new ext4 and returns its directory and how to end it.
func (b *bench) freshFS() (string, func() error, error) {
	img, mnt := filepath.Join(b.dir, "fs.img"), filepath.Join(b.dir, "mnt")
	script := `set -e; rm -f "$1"; mkdir -p "$2"; truncate -s 20G "$1"
mkfs.ext4 -qF -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$1"; mount -o loop,noinit_itable "$1" "$2"`
	if out, err := exec.Command("sh", "-c", script, "sh", img, mnt).CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("fresh file system: %w\n%s", err, out)
	}
	return mnt, func() error {
		var err error
		for range 100 { // a syncer or a cleaner that nobody waits for may still be at work
			if err = syscall.Unmount(mnt, 0); err == nil {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
		}
		return fmt.Errorf("unmount %s: %w", mnt, err)
	}, nil
}

// context is the directory of a workload's context.
func (b *bench) context(w string) string { return filepath.Join(b.dir, "ctx", w) }
