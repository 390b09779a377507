package engine

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProgramWhoseTerminalGoesAwayIsHungUpAndThenKilled(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		for range 3 {
			if n, err := io.WriteString(s.request.Stdout, "line\n"); n != 5 || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
		}
		first, second := <-s.signals, <-s.signals
		if first != unix.SIGHUP || second != unix.SIGKILL {
			t.Errorf("signals are %v, %v", first, second)
		}
		return 137
	}
	reader, w := io.Pipe()
	reader.Close()
	zero := 0
	exit, err := r.run(RunRequest{Remove: true, TTY: true, StopSeconds: &zero}, Streams{Stdout: w})
	if err != nil || exit.Code != 137 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}
