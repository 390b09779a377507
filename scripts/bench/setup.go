package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// setUp makes what the chosen workloads need: the base images, a registry that
// serves them, the package mirror, the contexts, BuildKit. stop is never nil.
func (b *bench) setUp(o options, chosen []workload) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range slices.Backward(stops) {
			f()
		}
	}
	if b.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return stop, fmt.Errorf("no place to keep what is made once, name one with -cache: %w", err)
		}
		b.cache = filepath.Join(user, "den-bench")
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return stop, err
	}
	if err := b.findBuildKit(o.buildkit); err != nil {
		return stop, err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return stop, fmt.Errorf("go env GOROOT: %w", err)
	}
	b.golang = strings.TrimSpace(string(goroot))
	r, err := startRegistry(filepath.Join(b.dir, "registry"))
	if err != nil {
		return stop, err
	}
	stops = append(stops, r.stop)
	b.registry = r.address
	if err := b.baseImage(); err != nil {
		return stop, err
	}
	needs := func(context string) bool {
		return slices.ContainsFunc(chosen, func(w workload) bool { return w.context == context })
	}
	if needs("W5") {
		mirror, err := b.startMirror()
		if err != nil {
			return stop, err
		}
		stops = append(stops, mirror)
	}
	for _, c := range contexts() {
		if !needs(c.name) {
			continue
		}
		if err := c.make(b); err != nil {
			return stop, fmt.Errorf("context of %s: %w", c.name, err)
		}
	}
	return stop, nil
}

// findBuildKit takes BuildKit from dir, or builds it; without runc it is left out.
func (b *bench) findBuildKit(dir string) error {
	if dir == "none" {
		return nil
	}
	if _, err := exec.LookPath("runc"); err != nil {
		fmt.Fprintln(os.Stderr, "bench: BuildKit is left out, it needs runc:", err)
		return nil
	}
	if dir == "" {
		dir = filepath.Join(b.cache, "buildkit-"+buildkitVersion)
		if err := buildBuildKit(dir); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	b.buildkitd, b.buildctl = filepath.Join(dir, "buildkitd"), filepath.Join(dir, "buildctl")
	return nil
}

// baseImage pushes a small Debian, and unpacks it for the floor.
func (b *bench) baseImage() error {
	base := filepath.Join(b.cache, "debian.tar")
	if _, err := os.Stat(base); err != nil {
		if err := tool("mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", base+".new.tar"); err != nil {
			return err
		}
		if err := os.Rename(base+".new.tar", base); err != nil {
			return err
		}
	}
	root := filepath.Join(b.dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := tool("tar", "-xf", base, "-C", root); err != nil {
		return err
	}
	if err := b.setupDen("import", base, b.registry+"/debian"); err != nil {
		return err
	}
	return b.setupDen("push", "-q", b.registry+"/debian")
}

// setupDen runs den with a store that only prepares.
func (b *bench) setupDen(args ...string) error {
	return b.group.run(b.dir, []string{"DEN_STORE=" + filepath.Join(b.dir, "setup")}, append([]string{b.den}, args...)...)
}

// tool runs a program that is not measured.
func tool(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// startMirror serves the packages that W5 installs, with what they need beyond
// the base.
func (b *bench) startMirror() (stop func(), err error) {
	debs := filepath.Join(b.cache, "debs")
	if _, err := os.Stat(filepath.Join(debs, "Packages")); err != nil {
		if err := b.downloadPackages(debs); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.mirror = "http://" + l.Addr().String() + "/"
	server := &http.Server{Handler: http.FileServer(http.Dir(debs)), ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	return func() {
		_ = server.Close()
		<-ended
	}, nil
}

// downloadPackages fetches them with the host's apt, by the base's own sources.
func (b *bench) downloadPackages(debs string) error {
	state := filepath.Join(b.dir, "apt")
	for _, d := range []string{debs + ".new/partial", state + "/lists/partial", state + "/cache/partial"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(b.dir, "root")
	apt := []string{"apt-get", "-qq", "-y", "-o", "Dir::Etc::SourceList=" + root + "/etc/apt/sources.list", "-o", "Dir::Etc::SourceParts=" + root + "/etc/apt/sources.list.d",
		"-o", "Dir::State=" + state, "-o", "Dir::State::status=" + root + "/var/lib/dpkg/status", "-o", "Dir::Cache=" + state + "/cache",
		"-o", "Dir::Cache::archives=" + debs + ".new/", "-o", "APT::Sandbox::User=root"}
	if err := tool(append(apt, "update")...); err != nil {
		return err
	}
	if err := tool(append(apt, "--no-install-recommends", "-d", "install", "python3", "git")...); err != nil {
		return err
	}
	script := `set -e; cd "$1.new"; for f in *.deb; do
dpkg-deb -f "$f"; echo "Filename: ./$f"; echo "Size: $(stat -c %s "$f")"; echo "SHA256: $(sha256sum < "$f" | cut -d' ' -f1)"; echo
done > Packages; rm -rf "$1" partial lock; mv "$1.new" "$1"`
	return tool("sh", "-c", script, "sh", debs)
}

// aptInstall is the step of W5.
func (b *bench) aptInstall() string {
	return "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] " + b.mirror + " ./' > /etc/apt/sources.list && " +
		"apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 git"
}

// freshFS mounts a new ext4 and returns its directory and how to end it.
func (b *bench) freshFS() (string, func() error, error) {
	img, mnt := filepath.Join(b.dir, "fs.img"), filepath.Join(b.dir, "mnt")
	script := `set -e; rm -f "$1"; mkdir -p "$2"; truncate -s 20G "$1"
mkfs.ext4 -qF -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$1"; mount -o loop,noinit_itable "$1" "$2"`
	if err := tool("sh", "-c", script, "sh", img, mnt); err != nil {
		return "", nil, fmt.Errorf("fresh file system: %w", err)
	}
	return mnt, func() error {
		// A syncer or a cleaner that nobody waits for may still be at work.
		err := eventually(10*time.Second, func() error { return syscall.Unmount(mnt, 0) })
		if err != nil {
			err = errors.Join(fmt.Errorf("unmount %s: %w", mnt, err), syscall.Unmount(mnt, syscall.MNT_DETACH))
		}
		return err
	}, nil
}

// context is the directory of a workload's context.
func (b *bench) context(name string) string { return filepath.Join(b.dir, "ctx", name) }

// dockerfile is the Dockerfile of a workload's build i.
func (b *bench) dockerfile(w workload, i int) string {
	return filepath.Join(b.context(w.context), fmt.Sprint("Dockerfile.", i))
}
