// Package sandbox runs a process tree behind the strongest isolation that the
// outer container allows.
//
// Engines ask for a sandbox by OCI runtime spec and never know which rung runs
// it. Rules that every executor keeps:
//
//   - A payload inherits its three standard streams and nothing else: no lease,
//     no pipe, no credential of den.
//   - Leases (Hold of the request and of its mounts) stay open until the last
//     process of the payload is gone, even if den itself is killed.
//   - Paths of the root file system are resolved inside it, never outside.
//   - Mount points that den had to create are gone again when Wait returns.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
)

// Networks of a Request.
const (
	// NetworkHost shares the outer container's network.
	NetworkHost = "host"
	// NetworkNone has a loopback device of its own and nothing else.
	NetworkNone = "none"
)

// A Request says what to run and in what. It must not change while Start runs.
type Request struct {
	// ID names the sandbox in messages and in the cgroup; unique in this process.
	ID string
	// Spec is an OCI runtime specification; Spec.Root.Path is not used,
	// Spec.Root.Readonly is. Process.User is numeric.
	Spec *specs.Spec
	// Root is mounted at "/".
	Root oci.Mount
	// Mounts come after Spec.Mounts, in order. Source and Type as for
	// Spec.Mounts; an overlay may name a path inside itself in Source.
	Mounts []oci.Mount
	// Hold is kept open as long as the payload lives, beside Root.Hold and
	// the Hold of each mount. Start duplicates; the caller still closes its own.
	Hold []*os.File
	// Drain are pipes that the holder of a detached sandbox keeps until they are empty, or the directory
	// of the sandbox is gone: what the payload has written last is there for the den that comes next.
	Drain []*os.File
	// Stdin may be nil (empty). With Process.Terminal, Stdin and Stdout are
	// copied to and from the terminal and Stderr is not used.
	Stdin io.Reader
	// Stdout and Stderr may be nil (discarded). An *os.File is the payload's
	// own stream, without a copy in between.
	Stdout, Stderr io.Writer
	// Network is NetworkHost or NetworkNone. A network namespace with a path in
	// Spec wins over it.
	Network string
	// OwnNetwork says that nobody else has the network namespace whose path is in Spec: its
	// parameters may be set.
	OwnNetwork bool
	// Interfaces are the network devices of a sandbox with a network stack of its own;
	// with one or more of them Network is not used.
	Interfaces []oci.Interface
	// NetworkOf is a running sandbox of the same executor whose network this one shares, and wins over Network;
	// so are IPCOf for System V IPC and message queues, and PIDsOf for process ids. An error that is
	// os.ErrProcessDone says that one of them has ended.
	NetworkOf, IPCOf, PIDsOf Sandbox
	// Detach, if set, is an empty directory, and the sandbox outlives this process:
	// its holder is controlled by files in there, and Adopt takes it over. Only an
	// Adopter can; Stdin, Stdout and Stderr are *os.File or nil then. Cancelling Start's
	// context after it has returned does nothing.
	Detach string
	// Init makes a small reaper process 1, which forwards signals to the payload.
	Init bool
	// Warn is told what of the request is not in force, in a sentence; may be nil.
	Warn func(string)
	// Wrote, if set, is told before Wait returns what layer Root.Upper holds, by an executor that
	// has written it there itself; one that mounts Root does not know, and tells nothing.
	Wrote func(layer.Applied)
}

// An Executor is one way to run sandboxes.
type Executor interface {
	Name() string
	// Start returns when the payload runs. Cancelling ctx kills it. An
	// *ExecError says that the sandbox is fine and the program cannot be run.
	Start(ctx context.Context, r *Request) (Sandbox, error)
}

// An Expecter is an Executor that can make itself ready for a request to come, while that is prepared. That it
// cannot is no error.
type Expecter interface {
	// Expect is told the request's network, "" for any.
	Expect(ctx context.Context, network string)
}

// A Sandbox is a running process tree.
type Sandbox interface {
	// Pid is the payload's first process as den sees it.
	Pid() int
	Signal(sig unix.Signal) error
	// Resize tells the payload's terminal its size.
	Resize(rows, cols uint16) error
	// Wait returns when the payload has ended, its output is copied, its
	// mounts are gone and its leases are released. It may be called more than once. An
	// error is den's own; how the payload ended is in Exit.
	Wait(ctx context.Context) (Exit, error)
}

// Exit says how a payload ended.
type Exit struct {
	// Code is the exit status, 128+signal if Signal ended the payload.
	Code   int
	Signal unix.Signal
	// OOMKilled is known only where the sandbox has a cgroup.
	OOMKilled bool
}

// An ExecError says that the payload's program could not be run. Its text is
// the one that Docker's users know.
type ExecError struct {
	Program string
	// Code is the exit status that docker gives for it: 127 not found, 126 not executable.
	Code int
	Err  error
}

func (e *ExecError) Error() string { return fmt.Sprintf("exec: %q: %v", e.Program, e.Err) }

// Unwrap returns the cause.
func (e *ExecError) Unwrap() error { return e.Err }

// ErrNotInPath is the cause of an ExecError for a name that PATH does not find.
var ErrNotInPath = errors.New("executable file not found in $PATH")
