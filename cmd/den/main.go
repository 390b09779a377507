// Command den builds images and runs containers inside containers, without a
// daemon and without privilege.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	_ "den/internal/earliest" // says what is wrong before gVisor panics
	"den/internal/network"
	"den/internal/network/userns"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/sandbox/sentry"
)

// streams are the standard streams of a command. stdout is data, stderr is talk.
type streams struct {
	in  *os.File
	out *stdout
	err *os.File
}

// An exitError ends den with the exit code of what it ran, and says nothing
// more: the program has spoken for itself.
type exitError struct {
	code int
}

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func main() {
	if sandbox.Reap() || sentry.Main() || network.Main(userns.Link()) {
		return
	}
	os.Exit(run(os.Args, streams{in: os.Stdin, out: &stdout{File: os.Stdout}, err: os.Stderr}))
}

// gcPercent lets the heap grow before it is collected: den is a short-lived
// process, and its peak is small. Copying 20,000 files takes a tenth less CPU
// than with Go's 100 and peaks at 76 MiB instead of 60; at 800 nothing is gained.
// The soft limit keeps what nobody has measured below the promised 256 MiB.
const (
	gcPercent       = 400
	memoryLimitSoft = 160 << 20
)

// tuneMemory leaves alone what the user has set.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimitSoft)
	}
}

func run(argv []string, io streams) int {
	tuneMemory()
	ctx, stop := interruptible(context.Background())
	defer stop()
	cmd := door(argv[0], io)
	cmd.SetArgs(argv[1:])
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		err = io.out.failed()
	}
	var exit *exitError
	var interrupted *interruptError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(context.Cause(ctx), &interrupted):
		// What else the end of the work has to say is no news.
		if !errors.Is(err, context.Canceled) && !errors.As(err, &interrupted) {
			report(io.err, err)
		}
		fmt.Fprintln(io.err, "den:", interrupted)
		return 128 + int(interrupted.signal)
	}
	report(io.err, err)
	var usage *usageError
	if errors.As(err, &usage) && cmd.Annotations[usageExit] == "" {
		return 125
	}
	return 1
}

// report prints an error for a person.
func report(w io.Writer, err error) {
	fmt.Fprintf(w, "den: %s%s\n", progress.Plain(err.Error()), room(err))
}

// room says what helps where a disk is full. Who met the store's own cap was told.
func room(err error) string {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || errdefs.IsResourceExhausted(err) {
		return ""
	}
	return "; if it is the disk of the store: den prune --all --force makes room, and den doctor says how much there is"
}
