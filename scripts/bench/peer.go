package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A peer does the workloads' parts on a fresh file system.
type peer struct {
	name string
	// open prepares it; the function ends it.
	open func(fs string, w workload) (func(), error)
	do   func(fs string, w workload, p part) (sample, error)
	// check looks at the result; nil cannot.
	check func(fs string, w workload) error
}

func (b *bench) peers() []peer {
	list := []peer{
		{"den", b.denOpen, b.denDo, b.denCheck},
		{"floor", nil, b.floorDo, nil},
	}
	if b.buildkitd != "" {
		list = append(list, peer{"buildkit", b.buildkitOpen, b.buildkitDo, nil})
	}
	return list
}

// sampleOf runs all parts of a workload with one peer.
func (b *bench) sampleOf(w workload, p peer) (err error) {
	if p.name == "buildkit" && w.name == "run" {
		return nil // it only builds
	}
	fs, end, err := b.freshFS()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if p.open != nil {
		stop, err := p.open(fs, w)
		if err != nil {
			return err
		}
		defer stop()
	}
	for _, part := range w.parts {
		if part.change != nil {
			if err := part.change(b.context(w.name)); err != nil {
				return err
			}
		}
		s, err := p.do(fs, w, part)
		if err != nil {
			return err
		}
		b.add(w.name+" "+part.name, p.name, s)
	}
	if p.check != nil {
		return p.check(fs, w)
	}
	return nil
}

func denEnv(fs string) []string { return []string{"DEN_STORE=" + filepath.Join(fs, "store")} }

func (b *bench) denOpen(fs string, w workload) (func(), error) {
	_, err := measure(fs, denEnv(fs), b.den, "pull", "-q", b.registry+"/"+w.image)
	return func() {}, err
}

func (b *bench) denDo(fs string, w workload, _ part) (sample, error) {
	if w.name == "run" {
		return measure(fs, denEnv(fs), b.den, "run", "--rm", b.registry+"/debian", "true")
	}
	return measure(fs, denEnv(fs), b.den, "build", "--progress=plain", "-t", "b", b.context(w.name))
}

// denCheck reads the built image's files back.
func (b *bench) denCheck(fs string, w workload) error {
	if len(w.files) == 0 {
		return nil
	}
	out := filepath.Join(fs, "out")
	if _, err := measure(fs, denEnv(fs), b.den, "build", "-q", "-o", out, b.context(w.name)); err != nil {
		return err
	}
	for _, f := range w.files {
		if fi, err := os.Stat(filepath.Join(out, f)); err != nil || fi.Size() == 0 {
			return fmt.Errorf("check %s: %s is missing or empty (%v)", w.name, f, err)
		}
	}
	if w.name != "W2" {
		return nil
	}
	count, err := os.ReadFile(filepath.Join(out, "count"))
	if err == nil && strings.TrimSpace(string(count)) != fmt.Sprint(smallFiles) {
		err = fmt.Errorf("check W2: %s files", strings.TrimSpace(string(count)))
	}
	return err
}

// floorDo does the bare work: files by cp, commands by clone, overlay and exec,
// without hashing, layers or records.
func (b *bench) floorDo(fs string, w workload, p part) (sample, error) {
	ctx := b.context(w.name)
	start := time.Now()
	var err error
	switch w.name + " " + p.name {
	case "W1 cold":
		for i := range 20 {
			err = errors.Join(err, b.isolated(fs, fmt.Sprint(i), fmt.Sprintf("echo %d > /f%d", i, i)))
		}
	case "W1 unchanged", "W4 unchanged":
		_, err = os.ReadFile(filepath.Join(ctx, "Dockerfile"))
	case "W2 cold":
		if err = b.copy(filepath.Join(ctx, "src"), filepath.Join(fs, "up0/app")); err == nil {
			err = b.isolated(fs, "0", "find /app -type f | wc -l > /count")
		}
	case "W2 unchanged":
		err = exec.Command("find", filepath.Join(ctx, "src"), "-printf", "%s %T@ %i\n").Run()
	case "W2 one changed":
		if err = exec.Command("find", filepath.Join(ctx, "src"), "-printf", "%s %T@ %i\n").Run(); err == nil {
			err = b.isolated(fs, "0", "find /app -type f | wc -l > /count")
		}
	case "W3 cold":
		if err = b.copy(filepath.Join(ctx, "big"), filepath.Join(fs, "up0/big")); err == nil {
			err = b.isolated(fs, "0", "sha256sum /big > /sum")
		}
	case "W4 cold", "W4 one changed":
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(fs, "app"), ".")
		cmd.Dir = ctx
		cmd.Env = append(os.Environ(), "GOCACHE="+filepath.Join(fs, "gocache"), "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off")
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
	case "run cold":
		err = b.isolated(fs, "0", "true")
	}
	return sample{wall: time.Since(start)}, err
}

func (b *bench) copy(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return exec.Command("cp", "-a", from, to).Run()
}

// isolated runs a shell command in namespaces of its own, over the base.
func (b *bench) isolated(fs, id, script string) error {
	root, up, work := filepath.Join(fs, "m"+id), filepath.Join(fs, "up"+id), filepath.Join(fs, "w"+id)
	for _, d := range []string{root, up, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("volatile,lowerdir=%s,upperdir=%s,workdir=%s", filepath.Join(b.dir, "root"), up, work)
	if err := syscall.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	err := cmd.Run()
	return errors.Join(err, syscall.Unmount(root, 0), os.RemoveAll(work))
}

func (b *bench) buildkitOpen(fs string, w workload) (func(), error) {
	conf := filepath.Join(fs, "buildkitd.toml")
	text := fmt.Sprintf("root=%q\n[grpc]\naddress=[%q]\n[worker.oci]\nbinary=\"runc\"\n[worker.containerd]\nenabled=false\n[registry.%q]\nhttp=true\n",
		filepath.Join(fs, "bk"), "unix://"+fs+"/bk.sock", b.registry)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.buildkitd, "--config", conf, "--otel-socket-path", filepath.Join(fs, "otel.sock"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }
	ready := func() bool {
		return exec.Command(b.buildctl, "--addr", "unix://"+fs+"/bk.sock", "debug", "workers").Run() == nil
	}
	if err := waitFor(30*time.Second, ready); err != nil {
		stop()
		return nil, err
	}
	warm := filepath.Join(fs, "warm")
	if err := os.MkdirAll(warm, 0o755); err != nil {
		return stop, err
	}
	if err := os.WriteFile(filepath.Join(warm, "Dockerfile"), []byte("FROM "+b.registry+"/"+w.image+"\nRUN true\n"), 0o644); err != nil {
		return stop, err
	}
	_, err := b.buildctlBuild(fs, warm)
	return stop, err
}

func (b *bench) buildkitDo(fs string, w workload, _ part) (sample, error) {
	return b.buildctlBuild(fs, b.context(w.name))
}

func (b *bench) buildctlBuild(fs, ctx string) (sample, error) {
	return measure(fs, nil, b.buildctl, "--addr", "unix://"+fs+"/bk.sock", "build", "--progress=plain",
		"--frontend", "dockerfile.v0", "--local", "context="+ctx, "--local", "dockerfile="+ctx)
}
