package engine

import (
	"io"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/progress"
)

// A MountKind says where a container's mount comes from.
type MountKind string

// The kinds of mounts that docker run's -v, --mount and --tmpfs ask for.
const (
	MountBind   MountKind = "bind"   // a path of the file system around den
	MountVolume MountKind = "volume" // a named volume of this engine; without a name an anonymous one
	MountTmpfs  MountKind = "tmpfs"
)

// A Mount is one volume, bind or tmpfs of a container.
type Mount struct {
	Kind MountKind
	// Source is a path or a volume's name; empty for tmpfs and anonymous volumes.
	Source string
	// Target is an absolute path inside the container.
	Target   string
	ReadOnly bool
	// NoCopy leaves a fresh volume empty instead of filling it from the image.
	NoCopy bool
	// Shallow binds the directory without what is mounted below it.
	Shallow bool
	// ShallowReadOnly leaves what is mounted below a read-only bind as it is.
	ShallowReadOnly bool
	// CreateSource makes a missing bind source a directory, as -v does and --mount does not.
	CreateSource bool
	// Options are further options of mount(8), such as a tmpfs's size.
	Options []string
	// Anonymous volumes were asked for without a name, and go with their container.
	Anonymous bool
	// Labels and DriverOptions are for a volume that is not there yet.
	Labels, DriverOptions map[string]string
	// Subpath is the directory of a volume that is mounted; empty is all of it.
	Subpath string
}

// A Ulimit is one resource limit: a name as in ulimit(1)'s long form ("nofile").
type Ulimit struct {
	Name       string
	Soft, Hard uint64
}

// Limits bound a container's resources. Zero is no limit.
type Limits struct {
	MemoryBytes     int64
	MemorySwapBytes int64 // memory and swap together; -1 is unlimited swap
	CPUs            float64
	Pids            int64
	CPUShares       uint64
	CpusetCPUs      string
	CpusetMems      string // memory nodes, as CpusetCPUs
	// MemoryReservationBytes is what stays with the container when others want memory.
	MemoryReservationBytes int64
	// BlkioWeight is the container's part of block devices that are busy, 10 to 1000.
	BlkioWeight uint16
}

// A RunRequest is everything that den run was asked for.
type RunRequest struct {
	Image    string
	Platform *oci.Platform
	// Pull is "always", "missing" or "never".
	Pull string
	Name string
	// Args replace the image's command; Entrypoint, when not nil, its entrypoint.
	Args       []string
	Entrypoint []string
	// Env entries are NAME=VALUE and win over the image's; NAME alone takes
	// the variable away.
	Env        []string
	Labels     map[string]string
	WorkingDir string
	User       string
	GroupAdd   []string
	Hostname   string
	AddHosts   []string // NAME:IP
	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	// Network is "host", which is also the default, or "none".
	Network  string
	Mounts   []Mount
	ShmBytes int64
	Limits   Limits
	Ulimits  []Ulimit
	CapAdd   []string
	CapDrop  []string
	// Security holds docker's --security-opt values: no-new-privileges,
	// seccomp=unconfined, systempaths=unconfined.
	Security   []string
	Sysctls    map[string]string
	ReadOnly   bool
	Init       bool
	StopSignal string
	// StopSeconds is how long den stop waits before it kills; nil is ten.
	StopSeconds *int
	// Remove deletes the container, with its anonymous volumes, when it ends.
	Remove bool
	TTY    bool
	// Console is the terminal's size when the program starts, if it is known.
	Console Size
	// OpenStdin connects standard input.
	OpenStdin bool
	// Log keeps the output in the container's log instead of Streams.
	Log bool
	// CIDFile, when set, receives the container's ID.
	CIDFile string
}

// Streams are what a container is connected to.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Signals are forwarded to the container's first process.
	Signals <-chan unix.Signal
	// Resizes carry the terminal's size, when RunRequest.TTY is set.
	Resizes <-chan Size
	// Starting is called once everything is there, right before the program is
	// started: now den's terminal may become the program's.
	Starting func()
	// Started is called once with the container's ID when its process runs.
	Started func(id string)
	// Warn takes sentences about what was asked for and is not in force.
	Warn func(string)
	// Sink shows the pull of a missing image.
	Sink progress.Sink
}

// A Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }
