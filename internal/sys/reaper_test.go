package sys_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// reaperEnv makes the test binary become a reaper of a shell.
const reaperEnv = "DEN_TEST_REAPER"

func becomeReaper() {
	if line := os.Getenv(reaperEnv); line != "" {
		os.Unsetenv(reaperEnv)
		panic(sys.BecomeReaper("/bin/sh", []string{"sh", "-c", line}, os.Environ()))
	}
}

func reaped(t *testing.T, line string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "TestReaperEndsAsItsProgram")
	cmd.Env = append(os.Environ(), reaperEnv+"="+line)
	return cmd
}

func TestReaperEndsAsItsProgram(t *testing.T) {
	becomeReaper()
	for line, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "kill -TERM $$": 143,
		// An orphan that ends first is reaped, and is not taken for the program.
		"(sleep 0.05; exit 3) & (exit 4) & wait; exit 5": 5,
	} {
		err := reaped(t, line).Run()
		var exit *exec.ExitError
		got := 0
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: %d, want %d", line, got, want)
		}
	}
}

func TestReaperPassesSignalsOn(t *testing.T) {
	becomeReaper()
	cmd := reaped(t, `trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.02; done`)
	cmd.Args[2] = "TestReaperPassesSignalsOn"
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := out.Read(buf)
	if err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for {
		n, err := out.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			break
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 || all.String() != "got\n" {
		t.Errorf("%v, %q", err, all.String())
	}
}
