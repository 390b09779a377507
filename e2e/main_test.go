// Package e2e drives den as its users do: the binary, real registries, real
// peers (dockerd, skopeo, podman), real Debian images.
//
// Each test has a store of its own unless it says otherwise. What a machine
// lacks is a skip that names the missing fact.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shared is what all tests of a run use; TestMain makes it.
type shared struct {
	dir      string // deleted at the end
	den      string // the binary
	baseTool string // the demonstration's static shell
	registry string // host:port of a docker-registry
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
	if env.dir, err = os.MkdirTemp("", "den-e2e-"); err != nil {
		return 1, err
	}
	defer func() {
		if cerr := clean(env.dir); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}()
	if err := os.Chmod(env.dir, 0o755); err != nil { // the plain user reads the binary
		return 1, err
	}
	env.den, env.baseTool = filepath.Join(env.dir, "den"), filepath.Join(env.dir, "base")
	if err := build("..", env.den, "./cmd/den"); err != nil {
		return 1, err
	}
	if err := build("../demo", env.baseTool, "./base"); err != nil {
		return 1, err
	}
	stop, err := startRegistry()
	if err != nil {
		return 1, err
	}
	defer stop()
	return m.Run(), nil
}

// clean removes dir, also what was written read-only.
func clean(dir string) error {
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(p, 0o755)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

func build(dir, out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

// startRegistry runs Debian's docker-registry on a free loopback port; without
// the program the tests that need it skip.
func startRegistry() (func(), error) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	conf := filepath.Join(env.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(env.dir, "registry"), addr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() { cmd.Process.Kill(); cmd.Wait() }
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v2/", nil)
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			env.registry = addr
			return stop, nil
		}
		if ctx.Err() != nil {
			stop()
			return nil, fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
}

// needRegistry skips where there is no docker-registry.
func needRegistry(t *testing.T) string {
	t.Helper()
	if env.registry == "" {
		t.Skip("needs docker-registry")
	}
	return env.registry
}

// need skips where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// A den is den with a store of its own, run by root or by a plain user.
type den struct {
	t    *testing.T
	home string
	env  []string
	cred *syscall.Credential
}

// newDen is den as the user who runs the tests.
func newDen(t *testing.T) *den {
	t.Helper()
	home, err := os.MkdirTemp(env.dir, "job-")
	if err != nil {
		t.Fatal(err)
	}
	d := &den{t: t, home: home}
	d.setEnv()
	return d
}

// plainUser is a user with a range of ids, which `make test` creates.
const plainUser = "dentest"

// newPlainDen is den as a plain user on rung userns.
func newPlainDen(t *testing.T) *den {
	t.Helper()
	needRoot(t)
	need(t, "newuidmap")
	u, err := user.Lookup(plainUser)
	if err != nil {
		t.Skipf("needs the user %s with a range in /etc/subuid", plainUser)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	d := newDen(t)
	d.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(d.home, uid, gid); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *den) setEnv() {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name != "HOME" && name != "TMPDIR" && !strings.HasPrefix(name, "DEN_") && !strings.HasPrefix(name, "XDG_") {
			d.env = append(d.env, e)
		}
	}
	d.env = append(d.env, "HOME="+d.home, "TMPDIR="+d.home, "DEN_STORE="+filepath.Join(d.home, "store"), "XDG_DATA_HOME="+filepath.Join(d.home, "data"))
}

// A result is what a run of den left.
type result struct {
	out, err string
	code     int
	took     time.Duration
}

// try runs den with stdin and returns whatever happened.
func (d *den) try(stdin string, args ...string) result {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, env.den, args...)
	cmd.Env, cmd.Dir = d.env, d.home
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if d.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.cred}
	}
	start := time.Now()
	err := cmd.Run()
	r := result{out: out.String(), err: errs.String(), took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	default:
		d.t.Fatalf("den %v: %v", args, err)
	}
	return r
}

// run is try for what must succeed; it returns standard output.
func (d *den) run(args ...string) string {
	d.t.Helper()
	r := d.try("", args...)
	if r.code != 0 {
		d.t.Fatalf("den %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// write makes a file of the test's own directory, owned by den's user.
func (d *den) write(name, text string) string {
	d.t.Helper()
	p := filepath.Join(d.home, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
	if d.cred != nil {
		for q := p; q != d.home; q = filepath.Dir(q) {
			os.Lchown(q, int(d.cred.Uid), int(d.cred.Gid))
		}
	}
	return p
}

// small imports the demonstration's base image: a static shell and tools.
func (d *den) small() string {
	d.t.Helper()
	tar := smallTar(d.t)
	p := filepath.Join(d.home, "small.tar")
	b, err := os.ReadFile(tar)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write("small.tar", string(b))
	d.run("import", "--change", "ENV PATH=/bin", p, "small:1")
	return "small:1"
}

var smallTar = once(func(dir string) (string, error) {
	root := filepath.Join(dir, "small")
	if b, err := exec.Command(env.baseTool, "--install", root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("install: %w\n%s", err, b)
	}
	tar := filepath.Join(dir, "small.tar")
	if b, err := exec.Command("tar", "-C", root, "--owner=0", "--group=0", "--numeric-owner", "-cf", tar, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("tar: %w\n%s", err, b)
	}
	return tar, nil
})

// debianTar is a Debian root file system from the distribution's own packages.
var debianTar = once(func(dir string) (string, error) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", errMissing("mmdebstrap")
	}
	if os.Geteuid() != 0 {
		return "", errMissing("root for mmdebstrap")
	}
	tar := filepath.Join(dir, "debian.tar")
	cmd := exec.Command("mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", tar)
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, b)
	}
	return tar, nil
})

type errMissing string

func (e errMissing) Error() string { return "needs " + string(e) }

// once makes something for all tests when the first one asks for it.
func once(make func(dir string) (string, error)) func(*testing.T) string {
	var o sync.Once
	var path string
	var err error
	return func(t *testing.T) string {
		t.Helper()
		o.Do(func() { path, err = make(env.dir) })
		var missing errMissing
		if errors.As(err, &missing) {
			t.Skip(missing.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}
