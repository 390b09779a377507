package sandboxtest

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// live starts a sandbox that lives until its standard input, which end closes, ends.
func (b *Bench) live(r *sandbox.Request) (s sandbox.Sandbox, end func()) {
	b.Helper()
	in, w, err := os.Pipe()
	b.must(err)
	r.Stdin = in
	s, lines := b.start(b.Context(), r)
	in.Close()
	end = func() {
		w.Close()
		_, err := s.Wait(b.Context())
		b.must(err)
	}
	b.Cleanup(func() { w.Close() })
	b.want(lines.next(), "ready\n")
	return s, end
}

// idle is a script of a sandbox that only lives.
const idle = "echo ready; read x"

// process is a shell script with Docker's rights.
func (b *Bench) process(o sandbox.SpecOptions, script string) *specs.Process {
	b.Helper()
	if o.Env == nil {
		o.Env = []string{"PATH=/usr/local/bin:/bin"}
	}
	if o.Args == nil {
		o.Args = []string{"/bin/sh", "-c", script}
	}
	spec, err := sandbox.DefaultSpec(o)
	b.must(err)
	return spec.Process
}

// execer skips the test where the sandbox cannot start more programs.
func (b *Bench) execer(s sandbox.Sandbox) sandbox.Execer {
	b.Helper()
	e, ok := s.(sandbox.Execer)
	if !ok {
		_ = s.Signal(unix.SIGKILL)
		b.Skip("needs an executor whose sandboxes can start more programs")
	}
	return e
}

// exec runs one more program to its end.
func (b *Bench) exec(s sandbox.Sandbox, r *sandbox.ExecRequest) (string, sandbox.Exit) {
	b.Helper()
	var out Buffer
	if r.Stdout == nil {
		r.Stdout, r.Stderr = &out, &out
	}
	if r.ID == "" {
		r.ID = "exec"
	}
	ctx, cancel := context.WithTimeoutCause(b.Context(), limit, errors.New("the program did not end in time"))
	defer cancel()
	e, err := b.execer(s).Exec(ctx, r)
	b.must(err)
	exit, err := e.Wait(ctx)
	b.must(err)
	return out.String(), exit
}

// execSees: the program is in the sandbox's namespaces and root, with streams of its own.
func execSees(b *Bench) {
	r := b.Request("echo here >/dev/shm/f; echo mine >/tmp/g; " + idle)
	r.Spec.Hostname = "den-test"
	s, end := b.live(r)
	var stderr Buffer
	e := &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, "hostname; cat /dev/shm/f /tmp/g; cat; echo done; echo err >&2; exit 7"), Stdin: strings.NewReader("typed\n")}
	var out Buffer
	e.Stdout, e.Stderr = &out, &stderr
	_, exit := b.exec(s, e)
	b.want(out.String(), "den-test\nhere\nmine\ntyped\ndone\n")
	b.want(stderr.String(), "err\n")
	if exit.Code != 7 || exit.Signal != 0 {
		b.Errorf("exit is %+v", exit)
	}
	if !sharesPids(b.Exec) {
		text, _ := b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, "cat /proc/1/cmdline | tr '\\0' ' '; ls /proc/self/fd | wc -l")})
		if !strings.Contains(text, "read x") || !strings.HasSuffix(text, "4\n") {
			b.Errorf("process 1 and the number of descriptors: %q", text)
		}
	}
	end()
}

func execRights(b *Bench) {
	b.Put("etc/passwd", "root:x:0:0::/root:/bin/sh\nu:x:7:7::/home/u:/bin/sh\n", 0o644)
	s, end := b.live(b.Request(idle))
	out, _ := b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{UID: 7, GID: 8, Groups: []uint32{9}, Cwd: "/tmp", Env: []string{"PATH=/bin", "A=b c"}},
		"id -u; id -g; id -G; pwd; echo $A; echo $HOME; grep CapEff /proc/self/status | cut -f2; echo x >/dev/stdout")})
	b.want(out, "7\n8\n8 9\n/tmp\nb c\n/home/u\n0000000000000000\nx\n")
	const status = "grep -e CapBnd -e NoNewPrivs -e ^Seccomp: /proc/self/status | cut -f2"
	out, _ = b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{CapDrop: []string{"ALL"}, CapAdd: []string{"CHOWN"}, NoNewPrivileges: true}, status)})
	b.want(out, "0000000000000001\n1\n"+innerFilter(b)+"\n")
	out, _ = b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, "unshare -U true 2>/dev/null || echo refused; ulimit -n")})
	if !strings.HasPrefix(out, "refused\n") {
		b.Errorf("got %q", out)
	}
	p := b.process(sandbox.SpecOptions{Insecure: true, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}}, "grep ^Seccomp: /proc/self/status | cut -f2; ulimit -n")
	out, _ = b.exec(s, &sandbox.ExecRequest{Process: p, Privileged: true})
	b.want(out, outerFilter(b)+"\n100\n")
	end()
}

func execErrors(b *Bench) {
	b.Put("etc/plain", "text", 0o644)
	s, end := b.live(b.Request(idle))
	for _, c := range []struct {
		program, cwd string
		code         int
		text         string
	}{
		{"no-such", "", 127, `exec: "no-such": executable file not found in $PATH`},
		{"/no/such", "", 127, `exec: "/no/such": stat /no/such: no such file or directory`},
		{"/etc/plain", "", 126, `exec: "/etc/plain": permission denied`},
		{"/etc", "", 126, `exec: "/etc": is a directory`},
		{"true", "/no/dir", 126, `exec: "true": chdir to cwd ("/no/dir") set in config.json failed: no such file or directory`},
	} {
		_, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{Args: []string{c.program}, Cwd: c.cwd}, "")})
		var e *sandbox.ExecError
		if !errors.As(err, &e) {
			b.Errorf("%s: %v is no ExecError", c.program, err)
			continue
		}
		if e.Code != c.code || e.Error() != c.text {
			b.Errorf("%s: %d %s\nwant %d %s", c.program, e.Code, e, c.code, c.text)
		}
	}
	end()
	if _, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{}, "true")}); !errors.Is(err, os.ErrProcessDone) {
		b.Errorf("a program in a sandbox that has ended: %v", err)
	}
}

func execEnds(b *Bench) {
	s, end := b.live(b.Request(idle))
	start := func(ctx context.Context) sandbox.Sandbox {
		r, w, err := os.Pipe()
		b.must(err)
		defer r.Close()
		e, err := b.execer(s).Exec(ctx, &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{}, "trap 'exit 5' TERM; trap '' HUP; echo ready; while :; do sleep 0.05; done"), Stdout: w})
		w.Close()
		b.must(err)
		_, err = io.ReadFull(r, make([]byte, 6))
		b.must(err)
		return e
	}
	e := start(b.Context())
	b.must(e.Signal(unix.SIGTERM))
	if exit, err := e.Wait(b.Context()); err != nil || exit.Code != 5 {
		b.Errorf("exit is %+v, %v", exit, err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	e = start(ctx)
	cancel()
	if exit, err := e.Wait(b.Context()); err != nil || exit.Signal != unix.SIGKILL {
		b.Errorf("exit after cancel is %+v, %v", exit, err)
	}
	e = start(b.Context())
	end()
	if exit, err := e.Wait(b.Context()); err != nil || exit.Signal != unix.SIGKILL {
		b.Errorf("exit with the sandbox is %+v, %v", exit, err)
	}
	if !ownKernel(b.Exec) {
		if err := unix.Kill(e.Pid(), 0); !errors.Is(err, unix.ESRCH) {
			b.Errorf("the program is not gone: %v", err)
		}
	}
}

func execTerminal(b *Bench) {
	s, end := b.live(b.Request(idle))
	out, w, err := os.Pipe()
	b.must(err)
	defer out.Close()
	p := b.process(sandbox.SpecOptions{Terminal: true, UID: 1000}, "tty; stty size; read line; echo got $line; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.1; done")
	p.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	e, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: p, Stdin: strings.NewReader("typed\n"), Stdout: struct{ *writer }{&writer{w}}})
	b.must(err)
	l := newLines(b, out)
	var got []string
	for len(got) == 0 || got[len(got)-1] != "ready" {
		if l := strings.TrimSpace(l.next()); l != "typed" { // the echo comes when it comes
			got = append(got, l)
		}
	}
	if text := strings.Join(got, ","); !regexp.MustCompile(`^/dev/pts/\d+,11 22,got typed,ready$`).MatchString(text) {
		b.Errorf("got %q", text)
	}
	b.must(e.Resize(33, 44))
	b.want(strings.TrimSpace(l.next()), "33 44")
	if exit, err := e.Wait(b.Context()); err != nil || exit.Code != 3 {
		b.Errorf("exit is %+v, %v", exit, err)
	}
	w.Close()
	end()
}

func execFrozen(b *Bench) {
	s, end := b.live(b.Request(idle))
	f, ok := s.(sandbox.Freezer)
	if !ok {
		b.Skip("needs an executor that can hold its processes")
	}
	r, w, err := os.Pipe()
	b.must(err)
	defer r.Close()
	e, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{}, "echo ready; while :; do :; done"), Stdout: w})
	w.Close()
	b.must(err)
	_, err = io.ReadFull(r, make([]byte, 6))
	b.must(err)
	f.Freeze()
	b.awaitState(e.Pid(), "T")
	f.Thaw()
	b.awaitState(e.Pid(), "RSD")
	end()
}

// execInterrupted: what is typed is the terminal's to understand.
func execInterrupted(b *Bench) {
	s, end := b.live(b.Request(idle))
	out, w, err := os.Pipe()
	b.must(err)
	defer out.Close()
	defer w.Close()
	in, typed, err := os.Pipe()
	b.must(err)
	defer in.Close()
	defer typed.Close()
	e, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{
		ID: "exec", Process: b.process(sandbox.SpecOptions{Terminal: true}, "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"),
		Stdin: struct{ io.Reader }{in}, Stdout: struct{ *writer }{&writer{w}},
	})
	b.must(err)
	l := newLines(b, out)
	b.want(strings.TrimSpace(l.next()), "ready")
	_, err = typed.WriteString("\x03")
	b.must(err)
	if got := strings.TrimSpace(l.next()); !strings.HasSuffix(got, "caught") { // after the echo of the key
		b.Errorf("got %q", got)
	}
	if exit, err := e.Wait(b.Context()); err != nil || exit.Code != 5 {
		b.Errorf("exit is %+v, %v", exit, err)
	}
	end()
}

func execMany(b *Bench) {
	s, end := b.live(b.Request(idle))
	b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, "true")})
	before := b.descriptors()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 4 {
				var out Buffer
				e, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{
					ID: itoa(i), Process: b.process(sandbox.SpecOptions{Args: []string{"sh", "-c", "cat; exit $0", itoa(i)}}, ""),
					Stdin: strings.NewReader(itoa(i)), Stdout: &out, Stderr: &out,
				})
				if err != nil {
					b.Errorf("%d: %v", i, err)
					return
				}
				if exit, err := e.Wait(b.Context()); err != nil || out.String() != itoa(i) || exit.Code != i {
					b.Errorf("%d: %q, %+v, %v", i, out.String(), exit, err)
				}
			}
		})
	}
	wg.Wait()
	if after := b.descriptors(); after != before {
		b.Errorf("%d descriptors are open, %d were", after, before)
	}
	end()
}

// execBesideInit: process 1 is den's, which nobody may look into without a right to.
func execBesideInit(b *Bench) {
	if ownKernel(b.Exec) {
		b.Skip("needs the machine's kernel, to which process 1 is a process like others")
	}
	r := b.Request(idle)
	r.Init = true
	s, end := b.live(r)
	e, err := b.execer(s).Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{}, "exit 6")})
	if errors.Is(err, os.ErrPermission) {
		end()
		b.Skip("needs CAP_SYS_PTRACE: ", err)
	}
	b.must(err)
	if exit, err := e.Wait(b.Context()); err != nil || exit.Code != 6 {
		b.Errorf("exit is %+v, %v", exit, err)
	}
	if f, ok := s.(sandbox.Filer); ok {
		if _, err := f.Stat(b.Context(), "/bin/sh"); err != nil {
			b.Error(err)
		}
	}
	end()
}
