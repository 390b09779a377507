package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A terminal is a pseudo-terminal with a program on its far end.
type terminal struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	said   bytes.Buffer
	ended  chan error
	pid    int
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// openTerminal runs den with a terminal as its standard streams.
func openTerminal(t *testing.T, d *den, args ...string) *terminal {
	t.Helper()
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	// A blocking descriptor: reads end with EIO when the far end is closed.
	master := os.NewFile(uintptr(fd), "ptmx")
	var unlock, number int32
	if err := ioctl(uintptr(fd), syscall.TIOCSPTLCK, unsafe.Pointer(&unlock)); err != nil {
		t.Fatal(err)
	}
	if err := ioctl(uintptr(fd), syscall.TIOCGPTN, unsafe.Pointer(&number)); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if d.cred != nil {
		if err := slave.Chown(int(d.cred.Uid), -1); err != nil {
			t.Fatal(err)
		}
	}
	term := &terminal{t: t, master: master, ended: make(chan error, 1)}
	term.resize(30, 100)
	cmd := d.with("TERM=xterm").command(context.Background(), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.pid = cmd.Process.Pid
	go func() { term.ended <- cmd.Wait() }()
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			term.mu.Lock()
			term.said.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); master.Close() })
	return term
}

func (s *terminal) resize(rows, cols uint16) {
	s.t.Helper()
	size := [4]uint16{rows, cols}
	if err := ioctl(s.master.Fd(), syscall.TIOCSWINSZ, unsafe.Pointer(&size)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *terminal) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

func (s *terminal) typed(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// until waits for what matches on the screen.
func (s *terminal) until(pattern string) {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(20 * time.Second); !re.MatchString(s.text()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the terminal does not show %q:\n%s", pattern, s.text())
		}
	}
}

// code waits for den's end.
func (s *terminal) code() int {
	s.t.Helper()
	select {
	case err := <-s.ended:
		if err == nil {
			return 0
		}
		if e, ok := err.(interface{ ExitCode() int }); ok {
			return e.ExitCode()
		}
		s.t.Fatal(err)
	case <-time.After(30 * time.Second):
		s.t.Fatalf("den does not end:\n%s", s.text())
	}
	return -1
}

func TestTerminalIsTheContainers(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		container(t, d)
		s := openTerminal(t, d, "run", "--rm", "-it", "small", "sh")
		s.until(`[#$] `)
		s.typed("tty; stty size; ls -l /dev/console | cut -c1; echo TERM=$TERM; echo mark$((1+1))\r")
		s.until(`/dev/(pts/0|console)\r\n30 100\r\nc\r\nTERM=xterm\r\nmark2`)
		s.resize(41, 141)
		s.typed("until stty size | grep -q 141; do sleep 0.1; done; stty size; echo mark$((2+2))\r") // it takes its way over the API
		s.until(`41 141\r\nmark4`)
		s.typed("toolbox signals\r")
		s.until(`\r\nready\r\n`)
		s.typed("\x03")
		s.until("got 2\r\n")
		s.typed("exit 7\r")
		if code := s.code(); code != 7 {
			t.Errorf("exit %d, want 7:\n%s", code, s.text())
		}
	})
}

func TestTerminalNeedsATerminal(t *testing.T) {
	t.Parallel()
	d := container(t, newDen(t))
	d.fails([]string{"run", "--rm", "-it", "small", "true"}, "not a TTY")
	if r := d.try(nil, "run", "--rm", "-t", "small", "tty"); r.code != 0 || !strings.HasPrefix(r.out, "/dev/") {
		t.Errorf("-t alone: %+v", r)
	}
}

func TestProgressOnATerminalIsBuildKits(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN echo some words of the step; sleep 0.3\n"})
	s := openTerminal(t, d, "build", "-t", "x", ctx)
	if code := s.code(); code != 0 {
		t.Errorf("exit %d:\n%s", code, s.text())
	}
	s.until(`\[\+\] Building [0-9.]+s \(\d+/\d+\) FINISHED`)
	s.until(`RUN echo some words of the step`)
	s = openTerminal(t, d, "pull", smallImage(t))
	if code := s.code(); code != 0 {
		t.Errorf("exit %d:\n%s", code, s.text())
	}
}
