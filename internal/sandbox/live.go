package sandbox

import (
	"context"
	"io"
	"io/fs"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/oci"
)

// What follows is what sandboxes and executors can do beyond Start and Wait, for
// containers that live long. Each ability is an interface of its own, which a
// caller asserts: a sandbox without it says so by not having it.

// An Adopter is an Executor whose sandboxes can outlive the process that started
// them: those of a Request with Detach. The sandbox's holder keeps the leases,
// the terminal and how the payload ended.
type Adopter interface {
	Executor
	// Adopt takes over the sandbox that was started with Detach dir, by a process
	// that is gone, also when it has ended meanwhile. fs.ErrNotExist says that none
	// was started there, or that it ended without a trace (the machine did).
	Adopt(ctx context.Context, id, dir string) (Sandbox, error)
}

// An Execer is a Sandbox in which more programs can be started.
type Execer interface {
	// Exec starts one more program in the sandbox's namespaces, cgroup and root. The
	// Sandbox returned is that program's: it ends by itself, or with the sandbox. An
	// *ExecError says that the program cannot be run.
	Exec(ctx context.Context, r *ExecRequest) (Sandbox, error)
}

// An ExecRequest says what to start in a running sandbox.
type ExecRequest struct {
	// ID names the program in messages; unique in this process.
	ID string
	// Process is read as that of Request.Spec is; its fields are complete.
	Process *specs.Process
	// Stdin, Stdout and Stderr are Request's.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Privileged lifts the seccomp filter.
	Privileged bool
}

// A Terminal is a Sandbox whose Request had Detach and Process.Terminal: nobody
// copies the terminal's bytes but who asks for it.
type Terminal interface {
	// Terminal is the terminal's master, the same file for all who ask; nil without one. Reading
	// it ends with an error after the payload's last byte. It may be closed when the payload has
	// ended, never before.
	Terminal() *os.File
}

// A Pauser is a Sandbox whose processes can be stopped for as long as one likes.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// A Limiter is a Sandbox whose limits can be changed while it runs.
type Limiter interface {
	// SetLimits puts what of r is set in force; nil is no limit.
	SetLimits(ctx context.Context, r *specs.LinuxResources) error
}

// An Inspector is a Sandbox that knows what it uses.
type Inspector interface {
	Stats(ctx context.Context) (Stats, error)
	Processes(ctx context.Context) ([]Process, error)
}

// Stats are what a sandbox used so far and uses now. What is not known is 0.
type Stats struct {
	Read time.Time
	// CPUTotal, CPUUser and CPUSystem are the sums over all CPUs.
	CPUTotal, CPUUser, CPUSystem time.Duration
	ThrottledPeriods, Periods    uint64
	Throttled                    time.Duration
	MemoryBytes, MemoryPeakBytes uint64
	// MemoryCacheBytes of MemoryBytes are inactive page cache.
	MemoryCacheBytes uint64
	// MemoryLimitBytes is 0 without a limit.
	MemoryLimitBytes      uint64
	Pids, PidsLimit       uint64
	ReadBytes, WriteBytes uint64 // of block devices
	Interfaces            []InterfaceStats
}

// InterfaceStats count what passed a network device.
type InterfaceStats struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// A Process is one of a sandbox's, as ps shows it.
type Process struct {
	// Pid and PPid are those that den sees on the strong rungs, and the sandbox's own
	// where it has its own kernel.
	Pid, PPid int
	UID       uint32
	// User is UID's name in the sandbox's passwd, or the number.
	User    string
	State   string
	TTY     string // "?" without one
	Started time.Time
	CPU     time.Duration
	// Name is the program's short one.
	Name     string
	Command  []string
	RSSBytes uint64
}

// A Filer is a Sandbox whose file system, with all that is mounted in it, can be
// read and written while it runs. Paths are the sandbox's: symbolic links and ".."
// are resolved in its root and lead nowhere else. Errors are fs.ErrNotExist and the like.
type Filer interface {
	// Stat does not follow a symbolic link at the end of name.
	Stat(ctx context.Context, name string) (FileStat, error)
	// ReadTar writes a tar of name to w. Its entries begin with as (docker cp's way:
	// the base name of what was asked for).
	ReadTar(ctx context.Context, name, as string, w io.Writer) error
	// WriteTar unpacks the tar r into the directory name.
	WriteTar(ctx context.Context, name string, r io.Reader, o WriteTarOptions) error
}

// FileStat describes a file of a sandbox.
type FileStat struct {
	Name       string // base name
	Size       int64
	Mode       fs.FileMode
	ModTime    time.Time
	LinkTarget string
}

// WriteTarOptions are those of docker's PUT archive.
type WriteTarOptions struct {
	// KeepKinds refuses to put a directory where something else is, and the reverse.
	KeepKinds bool
	// CopyOwners keeps the tar's numeric owners; else they are UID and GID.
	CopyOwners bool
	UID, GID   uint32
}

// A Changer is a Sandbox that keeps what it wrote to itself while it runs.
type Changer interface {
	// ExportChanges writes the changes so far to w as a layer's tar.
	ExportChanges(ctx context.Context, w io.Writer) error
}

// A Plugger is a Sandbox with a network stack of its own, which devices can
// be put into and taken out of while it runs.
type Plugger interface {
	Plug(ctx context.Context, i oci.Interface) error
	Unplug(ctx context.Context, name string) error
}
