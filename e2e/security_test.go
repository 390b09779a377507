package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestStepsSeeNothingOfDen(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		cfg := d.dir(files{"config.json": `{"auths":{"registry.invalid":{"auth":"dXNlcjpzM2NyM3QtYXV0aA=="}}}`})
		ctx := d.dir(files{"Dockerfile": `FROM @small
RUN ps -o args= > /processes; true
RUN toolbox fds > /fds
RUN env | cut -d= -f1 | sort | tr '\n' ' ' > /env; tr '\0' '\n' < /proc/1/environ | cut -d= -f1 | sort | tr '\n' ' ' > /env1
RUN for f in /proc/[0-9]*; do readlink $f/root $f/exe $f/cwd; done | grep -e den -e store > /links; true
RUN ls -d ` + d.store() + ` ` + cfg + ` ` + env.den + ` 2>/dev/null > /paths; ls -d /old_root /.old* 2>/dev/null >> /paths; true
RUN grep -c . /proc/self/mountinfo > /mounts; find / -xdev -name config.json -o -xdev -name den-store.json > /found
RUN cat /proc/keys 2>/dev/null | wc -l > /keys; dmesg 2>/dev/null | wc -l > /dmesg
`})
		got := d.with("DOCKER_CONFIG="+cfg, `DOCKER_AUTH_CONFIG={"auths":{"other.invalid":{"auth":"dXNlcjpzM2NyM3Q="}}}`, "MY_TOKEN=s3cr3t").tree(ctx)
		for _, empty := range []string{"links", "paths", "found"} {
			if got[empty].Size != 0 {
				t.Errorf("/%s has %d bytes, want none", empty, got[empty].Size)
			}
		}
		for _, name := range []string{"env", "env1"} {
			got.holds(t, name, map[string]string{"env": "HOME PATH PWD SHLVL ", "env1": "HOME PATH "}[name])
		}
		got.holds(t, "keys", "0\n")
		got.holds(t, "dmesg", "0\n")
		text := d.feed(nil, "build", "-o", "-", ctx)
		for _, secret := range []string{"s3cr3t", "dXNlcjp"} {
			if strings.Contains(text, secret) {
				t.Errorf("the image holds %q", secret)
			}
		}
		for line := range strings.Lines(fileOf(t, text, "processes")) {
			if !strings.Contains(line, "ps -o args=") {
				t.Errorf("a process is %q", line)
			}
		}
		lines := strings.Split(strings.TrimSpace(fileOf(t, text, "fds")), "\n")
		if d.onSentry() { // which calls a stream of its own world by a number
			lines[0] = strings.Replace(lines[0], "0 host:[1]", "0 /dev/null", 1)
		}
		if len(lines) != 3 || !strings.HasPrefix(lines[0], "0 /dev/null") || !strings.HasPrefix(lines[1], "1 /fds") {
			t.Errorf("open files are %q", lines)
		}
	})
}

// worked is what of toolbox hostile's attempts reached anything. A sentry's kernel says
// itself that it has no such device, the machine's is not asked; and below its root
// file system lies an empty one.
func (d *den) worked(said string) string {
	if !d.onSentry() {
		return said
	}
	return strings.Join(slices.DeleteFunc(strings.SplitAfter(said, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "device ") || line == "another root directory can be reached: \n"
	}), "")
}

// What toolbox hostile tries is listed there.
func TestHostileStepsGetNowhere(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"Dockerfile": `FROM @small
RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --mount=type=bind,target=/b,rw toolbox hostile /c /t /b > /steps
RUN --network=none toolbox hostile >> /steps
USER app
RUN toolbox hostile > /tmp/user
`})
		text := d.feed(nil, "build", "-o", "-", ctx)
		equal(t, "worked in steps", "", d.worked(fileOf(t, text, "steps")))
		equal(t, "worked for a user", "", d.worked(fileOf(t, text, "tmp/user")))
		container(t, d)
		equal(t, "worked", "", d.worked(d.run("run", "--rm", "-v", "v:/v", "-v", d.dir(nil)+":/b", "--cap-add", "DAC_OVERRIDE", "small", "toolbox", "hostile", "/v", "/b")))
		if d.onSentry() {
			return // whose kernel has namespaces to give away: they are its own
		}
		if weak := d.run("run", "--rm", "--security-opt", "seccomp=unconfined", "small", "toolbox", "hostile"); !strings.Contains(weak, "unshare user is allowed") {
			t.Errorf("toolbox hostile has become harmless: %q", weak)
		}
	})
}

func TestKeysOfDensSessionAreNotTheContainers(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		runtime.LockOSThread() // and never unlocked: the session ends with the thread
		const joinSession, session = 1, ^uintptr(2)
		text := []byte("user\x00den-e2e\x00")
		if _, _, errno := syscall.Syscall(syscall.SYS_KEYCTL, joinSession, 0, 0); errno != 0 {
			t.Skipf("needs keys: %v", errno)
		}
		if _, _, errno := syscall.Syscall6(syscall.SYS_ADD_KEY, uintptr(unsafe.Pointer(&text[0])), uintptr(unsafe.Pointer(&text[5])), uintptr(unsafe.Pointer(&text[0])), 4, session, 0); errno != 0 {
			t.Skipf("needs keys: %v", errno)
		}
		if d.onSentry() { // its kernel has no keys at all
			d.fails([]string{"run", "--rm", "--security-opt", "seccomp=unconfined", "small", "toolbox", "key", "den-e2e"}, "function not implemented")
			return
		}
		equal(t, "toolbox key", "no key\n", d.run("run", "--rm", "--security-opt", "seccomp=unconfined", "small", "toolbox", "key", "den-e2e"))
	})
}

// fileOf is a file's text from a tar.
func fileOf(t *testing.T, archive, name string) string {
	t.Helper()
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if strings.TrimPrefix(h.Name, "./") == name {
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
	}
}

func TestEndlessOutputIsBounded(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN yes a line of forty characters, more or less | head -c 200000000; echo; echo the end\nRUN head -c 50000000 /dev/zero | tr '\\0' x\n"})
	r, rss := d.measured("build", "--progress=plain", ctx)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, tail(r.err))
	}
	if n := len(r.out) + len(r.err); n > 16<<20 {
		t.Errorf("den prints %d MiB", n>>20)
	}
	if rss > 256<<20 {
		t.Errorf("den took %d MiB of memory", rss>>20)
	}
}

// processes are those whose command line holds marker.
func processes(t testing.TB, marker string) (pids []string) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(marker)) {
			pids = append(pids, p)
		}
	}
	return pids
}

func TestKilledBuildLeavesNoProcessAndTheNextFinishes(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		marker := fmt.Sprintf("%d.%d", 1000+pushed.Add(1), os.Getpid())
		ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN echo early > /early\nRUN --mount=type=cache,target=/c if [ -e /c/second ]; then echo finished > /done; else touch /c/second; (sleep " + marker + " &); sleep " + marker + "; fi\n"})
		cmd := d.command(context.Background(), "build", ctx)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		d.inCacheMount("second")
		d.eventually("the step runs", func() bool { return len(d.sandboxed("sleep\x00"+marker)) >= 2 })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		d.eventually("the step's processes end", func() bool { return len(d.sandboxed("sleep\x00"+marker)) == 0 })
		if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(d.home)) {
			t.Errorf("mounts are left: %v", err)
		}
		start := time.Now()
		equal(t, "executed", []string{"[stage-0 3/3] RUN --mount=type=cache,target=/c if [ -e /c/second ]; then echo finished > /done; else touch /c/second; (sleep " + marker + " &); sleep " + marker + "; fi"}, d.steps(ctx))
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("the next build took %v", took)
		}
		d.tree(ctx).holds(t, "done", "finished\n")
		d.run("prune", "-f", "-a")
		if left := d.leftovers(); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
}

func TestKilledContainerLeavesNoProcess(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		marker := fmt.Sprintf("%d.%d", 1000+pushed.Add(1), os.Getpid())
		cmd := d.command(context.Background(), "run", "--name", "victim", "small", "sh", "-c", "sleep "+marker+" & exec sleep "+marker)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		d.eventually("the container runs", func() bool { return len(d.sandboxed("sleep\x00"+marker)) >= 2 && d.run("ps", "-q") != "" })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		d.eventually("the container's processes end", func() bool { return len(d.sandboxed("sleep\x00"+marker)) == 0 })
		d.eventually("ps forgets it", func() bool { return d.run("ps", "-q") == "" })
		d.run("rm", "-f", "victim")
	})
}

func TestCancelledBuildStopsItsStepAtOnce(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	marker := fmt.Sprintf("%d.%d", 1000+pushed.Add(1), os.Getpid())
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN trap '' TERM INT; sleep " + marker + "\n"})
	cmd := d.command(context.Background(), "build", ctx)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.eventually("the step runs", func() bool { return len(processes(t, "sleep\x00"+marker)) == 1 })
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(start); took > 10*time.Second || cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("den ended after %v with %d", took, cmd.ProcessState.ExitCode())
	}
	d.eventually("the step's processes end", func() bool { return len(processes(t, "sleep\x00"+marker)) == 0 })
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestHostileLayersStayInside(t *testing.T) {
	t.Parallel()
	needRegistry(t)
	for name, entries := range map[string][]tar.Header{
		"parents":  {{Name: "../../../../../../../../OUT/a", Typeflag: tar.TypeReg, Mode: 0o644}},
		"absolute": {{Name: "/OUT/a", Typeflag: tar.TypeReg, Mode: 0o644}},
		"symlink":  {{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "/OUT"}, {Name: "dir/a", Typeflag: tar.TypeReg, Mode: 0o644}},
		"climb":    {{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../../../OUT"}, {Name: "dir/a", Typeflag: tar.TypeReg, Mode: 0o644}},
		"hardlink": {{Name: "stolen", Typeflag: tar.TypeLink, Linkname: "../../../../../../../../OUT/victim"}},
		"whiteout": {{Name: "../../../../../../../../OUT/.wh.victim", Typeflag: tar.TypeReg}},
		"opaque":   {{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "/OUT"}, {Name: "dir/.wh..wh..opq", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			everyRung(t, func(t *testing.T, d *den) {
				outside := d.dir(files{"victim": "untouched"})
				ref := pushEntries(t, d, outside, entries)
				r := d.try(nil, "build", "-o", "type=tar,dest="+filepath.Join(d.home, "out.tar"), d.dir(files{"Dockerfile": "FROM " + ref + "\nCOPY f /dir/b\nCOPY f /c\n", "f": "f"}))
				list, err := os.ReadDir(outside)
				if err != nil || len(list) != 1 {
					t.Errorf("outside are %v, %v; den exits with %d:\n%s", list, err, r.code, r.err)
				}
				checkFile(t, filepath.Join(outside, "victim"), "untouched")
				if r.code != 0 && !strings.Contains(r.err, "layer") && !strings.Contains(r.err, "sha256") {
					t.Errorf("the error names no layer:\n%s", r.err)
				}
				if left := d.leftovers(); len(left) > 0 {
					t.Errorf("left over: %q", left)
				}
			})
		})
	}
}

// pushEntries makes an image of one layer; OUT in a name is outside.
func pushEntries(t *testing.T, d *den, outside string, entries []tar.Header) string {
	t.Helper()
	file := filepath.Join(d.home, "hostile.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tarWriter{tar.NewWriter(f)}
	for _, h := range entries {
		h.Name, h.Linkname = strings.Replace(h.Name, "OUT", outside[1:], 1), strings.Replace(h.Linkname, "OUT", outside[1:], 1)
		w.add(h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ref, err := pushBase(fmt.Sprintf("t/hostile%d", pushed.Add(1)), containerConfig{}, file)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
