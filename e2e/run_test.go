package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// container is a den that has the small image under the name "small".
func container(t *testing.T, d *den) *den {
	t.Helper()
	d.run("pull", "-q", smallImage(t))
	d.run("tag", smallImage(t), "small")
	return d
}

func TestExitCodesAreThoseOfTheProgram(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		for _, c := range []struct {
			args []string
			code int
		}{
			{[]string{"small", "true"}, 0},
			{[]string{"small", "sh", "-c", "exit 42"}, 42},
			{[]string{"--init", "small", "sh", "-c", "kill -9 $$"}, 137},
			{[]string{"--init", "small", "sh", "-c", "kill -TERM $$"}, 143},
			{[]string{"small", "no-such-program"}, 127},
			{[]string{"small", "/etc/passwd"}, 126},
			{[]string{"no/such/image/at/all:1"}, 125},
			{[]string{"--no-such-flag", "small"}, 125},
			{[]string{"-w", "relative", "small"}, 125},
		} {
			if r := d.try(nil, append([]string{"run", "--rm", "--pull=never"}, c.args...)...); r.code != c.code {
				t.Errorf("den run %q: exit %d, want %d\n%s%s", c.args, r.code, c.code, r.out, r.err)
			}
		}
	})
}

func TestStreamsAreThoseOfTheProgram(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		r := d.try(strings.NewReader("in\nput\n"), "run", "--rm", "-i", "small", "sh", "-c", "cat; echo err >&2")
		if r.out != "in\nput\n" || r.err != "err\n" {
			t.Errorf("out %q, err %q", r.out, r.err)
		}
		r = d.try(strings.NewReader("never seen\n"), "run", "--rm", "small", "sh", "-c", "cat; echo done")
		if r.out != "done\n" {
			t.Errorf("without -i: out %q", r.out)
		}
		const mib = 64
		cmd := d.command(t.Context(), "run", "--rm", "small", "dd", "if=/dev/zero", "bs=1M", fmt.Sprint("count=", mib))
		n := new(counter)
		cmd.Stdout = n
		if err := cmd.Run(); err != nil || n.n != mib<<20 {
			t.Errorf("%d bytes arrived: %v", n.n, err)
		}
	})
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

func TestRunFlagsReachTheContainer(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		envFile := d.dir(files{"env": "# comment\nFROM_FILE=file\nHOST_VALUE\n"}) + "/env"
		filtered := "2"
		if d.onSentry() { // which refuses by itself what the filter would
			filtered = "0"
		}
		for _, c := range []struct{ args, script, want string }{
			{"-e A=1 -e HOST_VALUE --env-file " + envFile, "echo $A $FROM_FILE $HOST_VALUE $HOME", "1 file from-host /root"},
			{"-w /new/dir", "pwd", "/new/dir"},
			{"-u app", "id -un; id -G; echo $HOME", "app\n1000 44\n/home/app"},
			{"-u 5:6", "id -u; id -G", "5\n6"},
			{"--group-add 77", "id -G | tr ' ' '\\n' | grep 77", "77"},
			{"--hostname box", "hostname; grep -c box /etc/hosts", "box\n1"},
			{"--add-host some.test:10.9.8.7", "grep some.test /etc/hosts | tr -s '\\t ' ' '", "10.9.8.7 some.test"},
			{"--network=none", "ls /sys/class/net 2>/dev/null || echo lo; cat /proc/net/route | wc -l", "lo\n1"}, // a sentry's sysfs has no devices
			{"--read-only --tmpfs /scratch", "touch /x 2>/dev/null || echo ro; touch /scratch/x && echo rw", "ro\nrw"},
			{"--ulimit nofile=77:88", "ulimit -n", "77"},
			{"--shm-size 8m", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "8192"},
			{"--entrypoint /bin/echo", "x", "-c x"},
			{"--init", "tr '\\0' ' ' < /proc/1/cmdline | grep -c sh; n=$(ps -o pid | wc -l); toolbox orphan; for i in $(seq 100); do [ $(ps -o pid | wc -l) = $n ] && break; sleep 0.1; done; ps -o stat | grep -c Z", "0\n0"},
			{"--cap-drop ALL", "grep CapEff /proc/self/status | cut -f2", "0000000000000000"},
			{"--cap-drop=CHOWN", "chown 1 /tmp 2>/dev/null || echo no", "no"},
			{"--cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined", "mount -t tmpfs x /tmp && echo mounted", "mounted"},
			{"", "mount -t tmpfs x /tmp 2>/dev/null || echo no", "no"},
			{"--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status | cut -f2", "1"},
			{"", "grep NoNewPrivs /proc/self/status | cut -f2; grep Seccomp: /proc/self/status | cut -f2", "0\n" + filtered},
			{"--label a=b --stop-signal USR1 --pids-limit=200 --cpus=1.5", "echo fine", "fine"},
			{"", "ls /proc/acpi /sys/firmware /proc/scsi 2>/dev/null | grep -v : | wc -w; head -c1 /proc/kcore 2>/dev/null | wc -c; touch /proc/sys/kernel/hostname 2>/dev/null || echo ro", "0\n0\nro"},
			{"", "cd /dev; rm -rf core char; ls | tr '\\n' ' '", "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"},
		} {
			args := append(append([]string{"run", "--rm"}, strings.Fields(c.args)...), "small", "sh", "-c", c.script)
			if strings.Contains(c.args, "--entrypoint") {
				args = append(append([]string{"run", "--rm"}, strings.Fields(c.args)...), "small", "-c", c.script)
			}
			r := d.with("HOST_VALUE=from-host").try(nil, args...)
			if got := strings.TrimSpace(r.out); got != c.want {
				t.Errorf("den run %s %q: exit %d, %q, want %q\n%s", c.args, c.script, r.code, got, c.want, r.err)
			}
		}
	})
}

func TestVolumesOfEveryKind(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		d.run("build", "-t", "voluminous", d.dir(files{"Dockerfile": "FROM @small\nRUN mkdir /data && echo seed > /data/seed && chown 33:33 /data\nVOLUME /data\n"}))
		dir := d.dir(files{"file": "host\n"})
		out := d.run("run", "--rm", "-v", dir+":/host", "small", "sh", "-c", "cat /host/file; echo written > /host/back")
		if out != "host\n" {
			t.Errorf("the bound file says %q", out)
		}
		checkFile(t, filepath.Join(dir, "back"), "written\n")
		for spec, want := range map[string]string{dir + ":/host:ro": "no", dir + "/file:/one/file": "yes"} {
			if out := d.run("run", "--rm", "-v", spec, "small", "sh", "-c", "touch /host/x /one/file 2>/dev/null && echo yes || echo no"); strings.TrimSpace(out) != want && !strings.Contains(spec, "/one/") {
				t.Errorf("-v %s: writable: %s", spec, out)
			}
		}
		d.run("run", "--rm", "-v", "named:/data", "voluminous", "sh", "-c", "cat /data/seed && echo kept > /data/kept")
		if out := d.run("run", "--rm", "-v", "named:/other", "small", "sh", "-c", "cat /other/seed /other/kept; stat -c %u:%g /other"); out != "seed\nkept\n33:33\n" {
			t.Errorf("the named volume says %q", out)
		}
		if out := d.run("run", "--rm", "--mount", "type=volume,src=named,dst=/m,readonly", "small", "sh", "-c", "cat /m/kept; touch /m/x 2>/dev/null || echo ro"); out != "kept\nro\n" {
			t.Errorf("the mounted volume says %q", out)
		}
		if out := d.run("run", "--rm", "voluminous", "sh", "-c", "ls /data; grep -c ' /data ' /proc/mounts"); out != "seed\n1\n" {
			t.Errorf("the image's volume says %q", out)
		}
		if out := d.run("run", "--rm", "--tmpfs", "/t:size=1m", "--mount", "type=tmpfs,dst=/u", "small", "sh", "-c", "grep -c ' /[tu] tmpfs ' /proc/mounts"); out != "2\n" {
			t.Errorf("tmpfs mounts are %q", out)
		}
		d.fails([]string{"run", "--rm", "--mount", "type=bind,src=" + dir + "/absent,dst=/x", "small", "true"}, "absent")
		r := d.try(nil, "run", "--rm", "-v", dir+":/link/../../../escape", "small", "ls", "/escape")
		if r.code != 0 || !strings.Contains(r.out, "file") {
			t.Errorf("a target with ..: %+v", r)
		}
	})
}

func TestSetuidProgramsGainTheirOwner(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		d.run("build", "-t", "setuid", d.dir(files{"Dockerfile": "FROM @small\nRUN cp /bin/toolbox /bin/sudoish && chmod 4755 /bin/sudoish && cp /bin/toolbox /bin/capable && toolbox setcap /bin/capable\nUSER app\n"}))
		if out := d.run("run", "--rm", "setuid", "sudoish", "ids"); out != "uid=1000 euid=0 gid=1000 egid=1000\n" {
			t.Errorf("the program is %q", out)
		}
		if out := d.run("run", "--rm", "--security-opt", "no-new-privileges", "setuid", "sudoish", "ids"); out != "uid=1000 euid=1000 gid=1000 egid=1000\n" {
			t.Errorf("with no-new-privileges the program is %q", out)
		}
		if out := d.run("run", "--rm", "setuid", "capable", "caps"); out != "0000000000000400\n" {
			t.Errorf("a program with a file capability has %q", out)
		}
	})
}

func TestDetachedContainersLiveOnAndAreStopped(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		id := strings.TrimSpace(d.run("run", "-d", "--name", "worker", "small", "toolbox", "signals"))
		if len(id) != 64 {
			t.Errorf("den run -d prints %q", id)
		}
		if out := d.run("ps", "--format", "{{.Names}} {{.Image}}"); out != "worker small\n" {
			t.Errorf("ps says %q", out)
		}
		d.fails([]string{"run", "--name", "worker", "small", "true"}, "worker")
		d.waitLog("worker", "ready")
		d.run("kill", "-s", "USR1", "worker")
		d.waitLog("worker", "got 10")
		d.run("stop", "worker")
		if out := d.run("logs", "worker"); out != "ready\ngot 10\ngot 15\n" {
			t.Errorf("logs are %q", out)
		}
		if out := d.run("wait", "worker"); out != "55\n" {
			t.Errorf("wait says %q", out)
		}
		if out := d.run("ps", "-q"); out != "" {
			t.Errorf("ps says %q", out)
		}
		if out := d.run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.Name}}", "worker"); out != "exited 55 /worker\n" {
			t.Errorf("inspect says %q", out)
		}
		d.run("rm", "worker")
		d.fails([]string{"logs", "worker"}, "worker")
		d.run("run", "-d", "--name", "stubborn", "small", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
		d.waitLog("stubborn", "up")
		d.fails([]string{"rm", "stubborn"}, "running")
		start := time.Now()
		d.run("stop", "-t", "1", "stubborn")
		if took := time.Since(start); took < time.Second/2 || took > 8*time.Second {
			t.Errorf("stop -t 1 took %v", took)
		}
		if out := d.run("wait", "stubborn"); out != "137\n" {
			t.Errorf("wait says %q", out)
		}
		d.run("rm", "-f", "stubborn")
		d.run("run", "-d", "--rm", "--name", "fleeting", "small", "true")
		d.eventually("the container is removed", func() bool { return d.run("ps", "-aq") == "" })
	})
}

// waitLog waits until a detached container has written text.
func (d *den) waitLog(name, text string) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("%s says %q", name, text), func() bool { return strings.Contains(d.run("logs", name), text) })
}

// eventually polls what no event announces.
func (d *den) eventually(what string, true func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !true(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("it does not happen that %s", what)
		}
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 55, syscall.SIGINT: 42} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := d.command(ctx, "run", "--rm", "small", "toolbox", "signals")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			expect := func(want string) {
				t.Helper()
				if line, err := lines.ReadString('\n'); line != want+"\n" {
					t.Errorf("the program says %q, %v, want %q", line, err, want)
				}
			}
			expect("ready")
			for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, sig} {
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
				expect(fmt.Sprint("got ", int(s)))
			}
			_, _ = io.Copy(io.Discard, lines)
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != code {
				t.Errorf("exit %d after %v, want %d", got, sig, code)
			}
		}
	})
}

func TestMemoryLimitKillsWhatEatsMore(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := container(t, newDen(t))
	r := d.try(nil, "run", "--rm", "--memory", "64m", "small", "toolbox", "eat", "32")
	if strings.Contains(r.err, "cgroup") {
		t.Skipf("needs cgroups that can be written: %s", r.err)
	}
	if r.code != 0 || r.out != "ate 32\n" {
		t.Errorf("32 MiB of 64: exit %d, %q, %q", r.code, r.out, r.err)
	}
	if r := d.try(nil, "run", "--rm", "--memory", "64m", "small", "toolbox", "eat", "512"); r.code != 137 {
		t.Errorf("512 MiB of 64: exit %d, %q, %q", r.code, r.out, r.err)
	}
	if r := d.try(nil, "run", "--rm", "--pids-limit", "20", "small", "sh", "-c", "for i in $(seq 60); do sleep 5 & done; echo all"); r.code == 0 && !strings.Contains(r.err, "fork") {
		t.Errorf("60 processes of 20: exit %d, %q, %q", r.code, r.out, r.err)
	}
}

func TestContainersKeepTheirChangesUntilRemoved(t *testing.T) {
	t.Parallel()
	d := container(t, newDen(t))
	before := len(d.layers())
	for range 3 {
		d.run("run", "--rm", "small", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null")
	}
	equal(t, "layers of the store", before, len(d.layers()))
	if left, err := filepath.Glob(filepath.Join(d.store(), "engines", "*", "containers", "*")); err != nil || len(left) > 0 {
		t.Errorf("containers left: %q, %v", left, err)
	}
	if out := d.run("run", "--rm", "small", "ls", "/"); strings.Contains(out, "big") {
		t.Error("a container sees another's changes")
	}
	if _, err := os.Stat(filepath.Join(d.store(), "tmp")); err == nil && len(d.leftovers()) > 0 {
		t.Errorf("left over: %q", d.leftovers())
	}
}
