// Package powerloss shows that a power cut at any moment leaves a store that
// serves nothing torn and has what it promised: docs/design/store.md.
//
// A store lies on a real file system, that on a loop device, and that on a file
// of a FUSE file system which logs every write and flush. From the log follows
// what the disk may hold after a power cut at any moment; that is mounted, and
// den opens the store as after a reboot.
package powerloss

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	workFor = flag.Duration("work", 3*time.Second, "how long each store is used before the power goes")
	maxCuts = flag.Int("cuts", 16, "how many cut points to try for each file system and mode")
	between = flag.Int("between", 2, "how many cut points between two flushes to choose from")
)

// roleVar tells a child process what it is.
const roleVar = "DEN_POWERLOSS"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" && os.Geteuid() == 0 {
		os.Exit(apart())
	}
	if role == "" || role == "tests" {
		os.Exit(m.Run())
	}
	if err := child(role); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1)
	}
}

// apart runs the tests in a mount namespace of their own: however they end, no
// mount stays.
func apart() int {
	runtime.LockOSThread() // of which the child's death signal comes
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVar+"=tests")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Unshareflags: 0, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if errors.Is(err, unix.EPERM) {
		// Root without CAP_SYS_ADMIN: the tests say what they lack.
		cmd = exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), roleVar+"=tests")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powerloss:", err)
		return 1
	}
	return 0
}

// child is a process that the tests start. Its task comes on stdin.
func child(role string) error {
	var t task
	if err := json.NewDecoder(os.Stdin).Decode(&t); err != nil {
		return err
	}
	ctx := context.Background()
	tell := teller{out: json.NewEncoder(os.NewFile(3, "events")), ack: os.NewFile(4, "acks")}
	switch role {
	case "worker":
		return work(ctx, t, tell)
	case "collector":
		return collect(ctx, t, tell)
	case "noise":
		return disturb(ctx, t)
	case "checker":
		if err := reboot(); err != nil {
			return err
		}
		c, err := check(ctx, t)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(c)
	}
	return fmt.Errorf("no such role")
}

// reboot gives this process a boot id of its own.
func reboot() error {
	const bootID = "/proc/sys/kernel/random/boot_id"
	f, err := os.CreateTemp("", "boot-id-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := fmt.Fprintf(f, "after-the-cut-%d\n", time.Now().UnixNano()); err != nil {
		return err
	}
	return errors.Join(f.Close(), unix.Mount(f.Name(), bootID, "", unix.MS_BIND, ""))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
