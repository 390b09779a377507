package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func TestServerEndsWithAProcess(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs cat: %v", err)
	}
	gone, stop, err := exitWith(strconv.Itoa(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	select {
	case <-gone:
		t.Fatal("gone while the process lives")
	default:
	}
	in.Close()
	<-gone
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestServerEndsWithADescriptor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := dup(r)
	if err != nil {
		t.Fatal(err)
	}
	gone, stop, err := exitWith("fd:" + strconv.Itoa(fd))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := w.WriteString("still here"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-gone
	for _, what := range []string{"x", "-1", "0", "fd:x", strconv.Itoa(os.Getpid())} {
		var usage *usageError
		if _, _, err := exitWith(what); !errors.As(err, &usage) {
			t.Errorf("--exit-with %s: %v", what, err)
		}
	}
}

// serveFlags are den serve's with a command line and a daemon.json.
func serveFlags(t *testing.T, json string, args ...string) (*serveOptions, *globals, error) {
	t.Helper()
	g := &globals{daemon: filepath.Join(t.TempDir(), "daemon.json")}
	if err := os.WriteFile(g.daemon, []byte(json), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &serveOptions{}
	cmd := &cobra.Command{Use: "dockerd"}
	o.bind(cmd.Flags(), g)
	// The globals that daemon.json has a word for.
	cmd.Flags().StringSliceVar(&g.mirrors, "registry-mirror", nil, "")
	cmd.Flags().StringSliceVar(&g.insecure, "insecure-registry", nil, "")
	cmd.Flags().BoolVarP(&g.debug, "debug", "D", false, "")
	if err := cmd.ParseFlags(args); err != nil {
		return o, g, err
	}
	return o, g, o.configure(cmd, g)
}

func TestDockerdsCommandLinesAreTaken(t *testing.T) {
	for _, line := range []string{
		"--host=unix:///var/run/docker.sock --group=123 --log-level=debug",
		"-H unix:///a -H tcp://b:1 --tlsverify --tlscacert x --tlscert y --tlskey z -D",
		"--registry-mirror=https://m --insecure-registry=10.0.0.0/8 --mtu=1400 --bip 10.1.0.1/24 --fixed-cidr 10.1.0.0/25",
		"--storage-driver=overlay2 --storage-opt overlay2.size=1G --exec-opt native.cgroupdriver=systemd --exec-root /x --data-root /y --pidfile /z",
		"--iptables=false --ip6tables=false --ip-forward=false --userland-proxy=false --ipv6 --experimental --icc=false",
		"--default-ulimit nofile=1:2 --default-address-pool base=10.0.0.0/8,size=24 --dns 1.1.1.1 --dns-search a --dns-opt b --cgroup-parent /c",
		"--max-concurrent-downloads 3 --max-concurrent-uploads 3 --live-restore --selinux-enabled --userns-remap default --seccomp-profile unconfined --init --shutdown-timeout 5",
		"--add-runtime a=b --default-runtime runc --feature containerd-snapshotter=true --min-api-version 1.24 --rootless",
	} {
		if _, _, err := serveFlags(t, "{}", strings.Fields(line)...); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	o, g, err := serveFlags(t, `{"hosts": ["tcp://h:1"], "group": "g", "log-level": "debug", "storage-driver": "overlay2", "features": {"containerd-snapshotter": true}, "exec-opts": ["a=b"],
		"registry-mirrors": ["https://m"], "userland-proxy": false, "default-shm-size": "1G", "iptables": true, "builder": {"gc": {"enabled": true}}}`)
	if err != nil || len(o.hosts) != 1 || o.hosts[0] != "tcp://h:1" || o.group != "g" || !g.debug || g.driver != "overlay2" {
		t.Errorf("%v: %+v", err, o)
	}
	if len(g.notes) != 1 || !strings.Contains(g.notes[0], "accepted without effect: --") || strings.Contains(g.notes[0], "userland-proxy") {
		t.Errorf("notes %q", g.notes)
	}
	for line, want := range map[string]string{"--log-level loud": "want debug", "--mtu 100000": "want 0 to", "--mtu -1": "want 0 to"} {
		if _, _, err := serveFlags(t, "{}", strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
	if _, _, err := serveFlags(t, `{"hosts": ["tcp://h:1"]}`, "-H", "unix:///a"); err == nil || !strings.Contains(err.Error(), "hosts: (from flag: [unix:///a], from file: [tcp://h:1])") {
		t.Errorf("said twice: %v", err)
	}
}

func TestEnginesOfOneDataRootAreTwo(t *testing.T) {
	t.Setenv("DEN_STORE", "")
	dir := t.TempDir()
	var roots []string
	for range 2 {
		o, g := &serveOptions{dockerd: true}, &globals{dataRoot: dir}
		if err := o.placeStore(g); err != nil {
			t.Fatal(err)
		}
		if g.store != filepath.Join(dir, "den") {
			t.Errorf("store %s", g.store)
		}
		roots = append(roots, g.dataRoot)
	}
	if roots[0] == roots[1] {
		t.Errorf("both are %s", roots[0])
	}
}

func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(from uintptr) { fd, dupErr = dupFD(int(from)) })
	return fd, errors.Join(err, dupErr)
}

func dupFD(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }
