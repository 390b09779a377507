package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const buildkitVersion = "v0.33.1"

// buildBuildKit compiles the daemon and its client as their own module says,
// once; dir keeps them.
func buildBuildKit(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "buildctl")); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "bench: building BuildKit", buildkitVersion)
	// Outside of any module, and not with the flags of one.
	env := append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/moby/buildkit@"+buildkitVersion)
	cmd.Dir, cmd.Env = os.TempDir(), env
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("download BuildKit: %w\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return fmt.Errorf("download BuildKit: %w", err)
	}
	src := dir + ".src"
	script := `set -e; rm -rf "$2"; cp -r "$1" "$2"; chmod -R u+w "$2"; cd "$2"; mkdir -p "$3.new"
go build -trimpath -o "$3.new/" ./cmd/buildkitd ./cmd/buildctl; rm -rf "$3" "$2"; mv "$3.new" "$3"`
	cmd = exec.Command("sh", "-c", script, "sh", module.Dir, src, dir)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build BuildKit: %w\n%s", err, out)
	}
	return nil
}

// buildkitPeer is BuildKit: a daemon, or one for each build, and its client.
type buildkitPeer struct {
	b       *bench
	fs      string
	w       workload
	daemons []*exec.Cmd
	to      *registryServer
}

func (b *bench) newBuildKit(fs string, w workload) peer { return &buildkitPeer{b: b, fs: fs, w: w} }

func (k *buildkitPeer) name() string { return "buildkit" }

func (k *buildkitPeer) stores() []string { return instances(k.fs, "bk", k.w) }

// start starts the daemons, with the base image unpacked in each.
func (k *buildkitPeer) start() (err error) {
	if k.w.pushes {
		if k.to, err = startRegistry(filepath.Join(k.fs, "pushed")); err != nil {
			return err
		}
	}
	warm := filepath.Join(k.fs, "warm")
	if err := os.MkdirAll(warm, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(warm, "Dockerfile"), []byte("FROM "+k.b.registry+"/"+k.w.image+"\nRUN true\n"), 0o644); err != nil {
		return err
	}
	for i, store := range k.stores() {
		if err := k.startDaemon(i, store); err != nil {
			return err
		}
		if err := k.build(i, warm, filepath.Join(warm, "Dockerfile")); err != nil {
			return err
		}
	}
	return nil
}

func (k *buildkitPeer) startDaemon(i int, store string) error {
	conf, socket := store+".toml", k.socket(i)
	text := fmt.Sprintf("root=%q\n[grpc]\naddress=[%q]\n[worker.oci]\nbinary=\"runc\"\ndefaultCgroupParent=%q\n[worker.containerd]\nenabled=false\n[registry.%q]\nhttp=true\n",
		store, socket, k.b.group.parent, k.b.registry)
	if k.to != nil {
		text += fmt.Sprintf("[registry.%q]\nhttp=true\n", k.to.address)
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	cmd := k.b.group.command(k.fs, []string{"TMPDIR=" + k.fs}, k.b.buildkitd, "--config", conf, "--otel-socket-path", store+".otel")
	if err := cmd.Start(); err != nil {
		return err
	}
	k.daemons = append(k.daemons, cmd)
	return eventually(30*time.Second, func() error {
		return k.b.group.run(k.fs, nil, k.b.buildctl, "--addr", socket, "debug", "workers")
	})
}

func (k *buildkitPeer) stop() {
	for _, d := range k.daemons {
		_ = d.Process.Signal(syscall.SIGTERM)
		hangs := time.AfterFunc(20*time.Second, func() { _ = d.Process.Kill() })
		_ = d.Wait()
		hangs.Stop()
	}
	if k.to != nil {
		k.to.stop()
	}
}

// peak is that of the largest daemon; its mark begins anew.
func (k *buildkitPeer) peak() int64 {
	var rss peak
	for _, d := range k.daemons {
		rss.raise(highWater(d.Process.Pid))
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.Process.Pid), []byte("5"), 0) // proc(5): resets VmHWM
	}
	return rss.kib.Load()
}

func (k *buildkitPeer) socket(i int) string { return "unix://" + k.stores()[i] + ".sock" }

// build solves a Dockerfile with the daemon of build i.
func (k *buildkitPeer) build(i int, ctx, file string, more ...string) error {
	args := []string{k.b.buildctl, "--addr", k.socket(i % len(k.stores())), "build", "--progress=plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + ctx, "--local", "dockerfile=" + filepath.Dir(file), "--opt", "filename=" + filepath.Base(file)}
	return k.b.group.run(k.fs, nil, append(args, more...)...)
}

func (k *buildkitPeer) prepare(part) error { return nil }

// do builds without an output, as `den build -t` makes none either. BuildKit
// pulls by building on the image.
func (k *buildkitPeer) do(p part) error {
	ctx := k.b.context(k.w.context)
	switch p.kind {
	case running:
		return errors.New("BuildKit has no run")
	case push:
		return k.build(0, ctx, k.b.dockerfile(k.w, 0), "--opt", "target=result",
			"--output", "type=image,push=true,registry.insecure=true,name="+k.to.address+"/"+dataImage)
	default:
		return each(k.w.builds, func(i int) error {
			return k.build(i, ctx, k.b.dockerfile(k.w, i), "--opt", "target=result")
		})
	}
}

func (k *buildkitPeer) result() (string, error) {
	out := filepath.Join(k.fs, "out")
	tar := filepath.Join(k.fs, "out.tar")
	for i := range k.w.builds {
		to := filepath.Join(out, fmt.Sprint(i))
		// As a tar: its transfer of a directory can come to a standstill with so many files.
		if err := k.build(i, k.b.context(k.w.context), k.b.dockerfile(k.w, i), "--opt", "target=check", "--output", "type=tar,dest="+tar); err != nil {
			return "", err
		}
		if err := errors.Join(os.MkdirAll(to, 0o755), tool("tar", "-xf", tar, "-C", to)); err != nil {
			return "", err
		}
	}
	if k.to != nil {
		return out, k.b.checkPushed(k.to.address)
	}
	return out, nil
}
