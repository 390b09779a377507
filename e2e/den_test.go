package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A den is den with a store of its own, run by root or by a plain user.
type den struct {
	t    testing.TB
	home string
	env  []string
	cred *syscall.Credential
}

// newDen is den as the user who runs the tests.
func newDen(t testing.TB) *den {
	t.Helper()
	home, err := os.MkdirTemp(env.dir, "job-")
	if err != nil {
		t.Fatal(err)
	}
	d := &den{t: t, home: home}
	d.setEnv()
	t.Cleanup(func() {
		if !t.Failed() { // what failed stays to be looked at until the run ends
			if err := clean(home); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

// plainUser is a user with a range of ids, which `make test` creates.
const plainUser = "dentest"

// newPlainDen is den as a plain user on rung userns.
func newPlainDen(t testing.TB) *den {
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

// randomUser is the first of the users that no file names: so OpenShift runs containers,
// in root's group. Each den has one for itself, so that its processes are known by it.
const randomUser = 1000670000

var randomUsers atomic.Uint32

// newSentryDen is den as a user who has nothing but a user id, on the rung sentry.
func newSentryDen(t testing.TB) *den {
	t.Helper()
	needRoot(t)
	d := newDen(t)
	d.cred = &syscall.Credential{Uid: randomUser + randomUsers.Add(1), Gid: 0}
	if err := os.Chown(d.home, int(d.cred.Uid), 0); err != nil {
		t.Fatal(err)
	}
	return d.with("DEN_ISOLATION=sentry")
}

// onSentry reports whether steps run on kernels of their own.
func (d *den) onSentry() bool { return d.cred != nil && d.cred.Uid > randomUser }

// sandboxed are the processes of steps and containers whose command line has the marker. Those of
// a sentry are not to be seen from outside: its own processes stand for them.
func (d *den) sandboxed(marker string) (pids []string) {
	d.t.Helper()
	if !d.onSentry() {
		return processes(d.t, marker)
	}
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range list {
		fi, err := os.Stat(p)
		if err != nil {
			continue
		}
		b, err := os.ReadFile(p + "/cmdline")
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && err == nil && st.Uid == d.cred.Uid && !bytes.HasPrefix(b, []byte(env.den)) {
			pids = append(pids, p)
		}
	}
	return pids
}

// inCacheMount waits until a step has made a file in a cache mount.
func (d *den) inCacheMount(name string) {
	d.t.Helper()
	d.eventually("the step makes "+name, func() bool {
		list, _ := filepath.Glob(filepath.Join(d.store(), "cachemount/*/*/*/fs", name))
		return len(list) > 0
	})
}

// everyRung runs a test as who runs the tests, as the plain user, and as one on the
// rung sentry.
func everyRung(t *testing.T, test func(t *testing.T, d *den)) {
	strongRungs(t, test)
	t.Run("sentry", func(t *testing.T) { t.Parallel(); test(t, newSentryDen(t)) })
}

// strongRungs runs a test on the rungs of kernel namespaces.
func strongRungs(t *testing.T, test func(t *testing.T, d *den)) {
	t.Run("caller", func(t *testing.T) { t.Parallel(); test(t, newDen(t)) })
	t.Run("plain user", func(t *testing.T) { t.Parallel(); test(t, newPlainDen(t)) })
}

func (d *den) setEnv() {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "HOME", "TMPDIR", "SOURCE_DATE_EPOCH", "DOCKER_CONFIG", "SSH_AUTH_SOCK", "USER", "LOGNAME":
			continue
		}
		if !strings.HasPrefix(name, "DEN_") && !strings.HasPrefix(name, "XDG_") {
			d.env = append(d.env, e)
		}
	}
	d.env = append(d.env, "HOME="+d.home, "TMPDIR="+d.home, "DEN_STORE="+d.store(), "XDG_DATA_HOME="+filepath.Join(d.home, "data"))
}

// with is the same den with more environment.
func (d *den) with(vars ...string) *den {
	c := *d
	c.env = append(append([]string{}, d.env...), vars...)
	return &c
}

func (d *den) store() string { return filepath.Join(d.home, "store") }

// A result is what a run of den left.
type result struct {
	out, err string
	code     int
	took     time.Duration
}

// command is a den process, not yet started.
func (d *den) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, env.den, args...)
	cmd.Env, cmd.Dir = d.env, d.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.cred}
	return cmd
}

// timeout is far beyond what any one den process of these tests takes.
const timeout = 5 * time.Minute

// try runs den with stdin and returns whatever happened.
func (d *den) try(stdin io.Reader, args ...string) result {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), timeout)
	defer cancel()
	return d.finish(ctx, d.command(ctx, args...), stdin)
}

// measured is try that also returns the largest resident size, in bytes, of den
// and of the children it waited for.
func (d *den) measured(args ...string) (result, int64) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), timeout)
	defer cancel()
	cmd, file := d.command(ctx, args...), filepath.Join(d.home, "rss")
	cmd.Path = filepath.Join(env.dir, "measure")
	cmd.Args = append([]string{cmd.Path, file, env.den}, args...)
	r := d.finish(ctx, cmd, nil)
	b, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatal(err)
	}
	rss, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		d.t.Fatal(err)
	}
	return r, rss
}

// finish runs a command until it ends.
func (d *den) finish(ctx context.Context, cmd *exec.Cmd, stdin io.Reader) result {
	d.t.Helper()
	args := cmd.Args[1:]
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	r := result{out: out.String(), err: errs.String(), took: time.Since(start)}
	if ctx.Err() != nil {
		d.t.Fatalf("den %s: does not end\n%s%s", strings.Join(args, " "), r.out, r.err)
	}
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
	return d.feed(nil, args...)
}

// feed is run with standard input.
func (d *den) feed(stdin io.Reader, args ...string) string {
	d.t.Helper()
	r := d.try(stdin, args...)
	if r.code != 0 {
		d.t.Fatalf("den %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// fails is run for what must not succeed: it checks that each word is in what
// den says, and returns that.
func (d *den) fails(args []string, words ...string) string {
	d.t.Helper()
	r := d.try(nil, args...)
	if r.code == 0 {
		d.t.Errorf("den %s: succeeds, want an error with %q\n%s%s", strings.Join(args, " "), words, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			d.t.Errorf("den %s: the error does not say %q:\n%s", strings.Join(args, " "), w, r.err)
		}
	}
	return r.err
}

// files are a directory's, by name; a name that ends in "/" is a directory.
type files map[string]string

// dir makes a directory of the test's own, owned by den's user. In a
// Dockerfile, @NAME is the reference of a base image.
func (d *den) dir(f files) string {
	d.t.Helper()
	dir, err := os.MkdirTemp(d.home, "ctx-")
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	d.fill(dir, f)
	return dir
}

// fill writes files into dir.
func (d *den) fill(dir string, f files) {
	d.t.Helper()
	for name, text := range f {
		p := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(p, 0o755); err != nil {
				d.t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			d.t.Fatal(err)
		}
		if strings.Contains(name, "Dockerfile") {
			text = expand(d.t, text)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
	d.own(dir)
}

// own gives a tree to den's user.
func (d *den) own(path string) {
	d.t.Helper()
	if d.cred == nil {
		return
	}
	err := filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(d.cred.Uid), int(d.cred.Gid))
	})
	if err != nil {
		d.t.Fatal(err)
	}
}
