package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// A user is somebody who types den's commands, in a store of their own.
type user struct {
	t   *testing.T
	dir string
	env []string
}

func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{t: t, dir: t.TempDir()}
	t.Cleanup(func() { // after a failure: the kernel's work directories let nobody in
		_ = filepath.WalkDir(u.dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return nil
		})
	})
	u.env = append(os.Environ(),
		"HOME="+u.dir, "DOCKER_CONFIG="+u.dir, "DEN_STORE="+filepath.Join(u.dir, "store"), "DEN_DATA_ROOT="+filepath.Join(u.dir, "engine"))
	return u
}

// box builds the image "box"; without a rung the test is skipped.
func (u *user) box() {
	u.t.Helper()
	if why := rung(); why != "" {
		u.t.Skip("needs a rung: " + why)
	}
	b := &boxBuilder{dir: u.t.TempDir()}
	dir := filepath.Join(u.t.TempDir(), "context")
	if err := b.context(dir, nil); err != nil {
		u.t.Fatal(err)
	}
	u.out("build", "-q", "-t", "box", dir)
}

func (u *user) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	u.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "den", args...)
	cmd.Env, cmd.Dir = u.env, u.dir
	return cmd
}

func (u *user) out(args ...string) string {
	u.t.Helper()
	cmd := u.command(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		u.t.Fatalf("den %q: %v: %s", args, err, stderr.String())
	}
	return string(out)
}

// A session is den on a terminal.
type session struct {
	*exec.Cmd
	t     *testing.T
	tty   console.Console
	slave *os.File
	lines *bufio.Reader
	// before is the terminal's state when den was started.
	before unix.Termios
}

// terminal starts den on a terminal of its own, of 24 by 80 characters.
func (u *user) terminal(args ...string) *session {
	t := u.t
	t.Helper()
	tty, path, err := console.NewPty()
	if err != nil {
		t.Skipf("needs a pty: %v", err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := tty.Resize(console.WinSize{Height: 24, Width: 80}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := u.command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close(); slave.Close() })
	return &session{Cmd: cmd, t: t, tty: tty, slave: slave, lines: bufio.NewReader(tty), before: *before}
}

// expect reads to the line that contains what; it returns what it read.
func (s *session) expect(what string) string {
	s.t.Helper()
	var all strings.Builder
	for {
		line, err := s.lines.ReadString('\n')
		all.WriteString(line)
		if strings.Contains(line, what) {
			return all.String()
		}
		if err != nil {
			s.t.Fatalf("terminal: %v, want %q, got %q", err, what, all.String())
		}
	}
}

// rest closes the terminal's other end and reads what is left.
func (s *session) rest() string {
	s.slave.Close()
	out, err := io.ReadAll(s.lines)
	if err != nil && !errors.Is(err, unix.EIO) {
		s.t.Error(err)
	}
	return string(out)
}

func (s *session) send(text string) {
	s.t.Helper()
	if _, err := s.tty.Write([]byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) ends(code int) {
	s.t.Helper()
	err := s.Wait()
	var exit *exec.ExitError
	if got := s.ProcessState.ExitCode(); got != code || err != nil && !errors.As(err, &exit) {
		s.t.Errorf("den ended with %d, want %d: %v: %q", got, code, err, s.rest())
	}
}

func TestInterruptKeyReachesProgramOnce(t *testing.T) {
	u := newUser(t)
	u.box()
	for name, flags := range map[string][]string{
		"by its own terminal": {"-it"}, "without one": nil, "without one, with input": {"-i"}, "with output only": {"-t"},
	} {
		t.Run(name, func(t *testing.T) {
			u := &user{t, u.dir, u.env}
			s := u.terminal(append(append([]string{"run", "--rm"}, flags...), "box", "trap", "exit", "5")...)
			s.expect("ready")
			s.send("\x03")
			s.expect("got interrupt")
			s.ends(5)
			if rest := s.rest(); strings.Contains(rest, "again") {
				t.Errorf("it came again: %q", rest)
			}
		})
	}
}

func TestTerminalHasSizeAndFollowsResizes(t *testing.T) {
	u := newUser(t)
	u.box()
	s := u.terminal("run", "--rm", "-it", "box", "box", "winch")
	s.expect("ready tty 24x80")
	if err := s.tty.Resize(console.WinSize{Height: 30, Width: 100}); err != nil {
		t.Fatal(err)
	}
	s.expect("now tty 30x100")
	s.ends(0)
}

func TestTerminalIsRestored(t *testing.T) {
	u := newUser(t)
	u.box()
	s := u.terminal("run", "--rm", "-it", "box", "do", "echo ready", "cat")
	s.expect("ready")
	s.send("line\r")
	s.expect("line") // the echo
	s.expect("line") // and what cat makes of it
	s.send("\x04")
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil || *after != s.before {
		t.Errorf("terminal is %+v, was %+v: %v", after, s.before, err)
	}
}

func TestProgramWithoutTerminalCannotReachDens(t *testing.T) {
	u := newUser(t)
	u.box()
	s := u.terminal("run", "--rm", "box", "tty")
	s.expect("not a tty")
	s.ends(0)
}

// stalled is a registry that never answers; asked is closed when it is asked.
func stalled(t *testing.T) (host string, asked chan struct{}) {
	asked, done := make(chan struct{}), make(chan struct{})
	first := make(chan struct{}, 1)
	first <- struct{}{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-first:
			close(asked)
		default:
		}
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}))
	t.Cleanup(func() { close(done); srv.Close() })
	return strings.TrimPrefix(srv.URL, "http://"), asked
}

func TestInterruptEndsPullBeforeTheProgram(t *testing.T) {
	if why := rung(); why != "" {
		t.Skip("needs a rung: " + why)
	}
	for name, args := range map[string][]string{
		"run": {"run", "--rm", "--cidfile", "cid"}, "detached": {"run", "-d", "--rm", "--cidfile", "cid"}, "pull": {"pull"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t)
			host, asked := stalled(t)
			cmd := u.command(append(args, host+"/x/y")...)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-asked
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 143 {
				t.Errorf("exit code %d, want 143: %v: %s", code, err, stderr.String())
			}
			if !strings.Contains(stderr.String(), "den: canceled by SIGTERM") {
				t.Errorf("stderr is %q", stderr.String())
			}
			if _, err := os.Stat(filepath.Join(u.dir, "cid")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the container ID file is there: %v", err)
			}
			if got := u.out("ps", "-aq"); got != "" {
				t.Errorf("containers are left: %s", got)
			}
		})
	}
}
