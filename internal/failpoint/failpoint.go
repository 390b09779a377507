// Package failpoint lets a test make one named step fail, stop or kill the
// process. Without DEN_FAILPOINTS every point is a no-op.
//
// Points are named package.operation.step ("store.publish.rename") and stand
// just before the step that they name. The variable holds a comma-separated
// list of name=action.
package failpoint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// armed maps a point to its action. It is read once, so that a running
// process never changes its mind half-way through a commit.
var armed = sync.OnceValue(func() map[string]string { return parse(os.Getenv("DEN_FAILPOINTS")) })

// errnos are the actions that fail with a system call's error.
var errnos = map[string]syscall.Errno{
	"enospc": syscall.ENOSPC,
	"eio":    syscall.EIO,
	"eintr":  syscall.EINTR,
}

// Hit runs the action armed for name: "error", "enospc", "eio" and "eintr"
// return an error, "kill" ends the process as the OOM killer would, without
// deferred clean-up, "stop" stops it until somebody sends SIGCONT, and "jitter"
// waits now and then for some hundred microseconds, so that processes meet in
// more orders, and "linger" does so for milliseconds.
func Hit(name string) error {
	points := armed()
	if len(points) == 0 {
		return nil
	}
	return act(name, points[name])
}

func act(name, action string) error {
	switch action {
	case "":
		return nil
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the kernel may take a moment
	case "stop":
		return stop()
	case "jitter":
		if rand.IntN(4) == 0 {
			time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond)
		}
		return nil
	case "linger":
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		return nil
	case "error":
		return fmt.Errorf("failpoint %s", name)
	}
	if errno, ok := errnos[action]; ok {
		return fmt.Errorf("failpoint %s: %w", name, errno)
	}
	// A misspelt action would make a crash test pass without testing.
	panic(fmt.Sprintf("failpoint %s: unknown action %q", name, action))
}

// stop stops the process here and not a moment later: a signal to the process
// may be another thread's to take, and this one would go on until it is.
func stop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
}

// parse reads "store.publish.rename=kill,store.ingest.write=enospc".
func parse(spec string) map[string]string {
	points := map[string]string{}
	for field := range strings.SplitSeq(spec, ",") {
		if name, action, ok := strings.Cut(field, "="); ok {
			points[strings.TrimSpace(name)] = strings.TrimSpace(action)
		}
	}
	return points
}
