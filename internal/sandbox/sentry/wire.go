package sentry

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// What den and the sentry say to each other: frames of JSON on a stream
// socket, each after its length in four bytes. Only den sends descriptors.

const (
	// maxFrameBytes bounds a frame: the kernel gives a program 6 MiB of arguments at most.
	maxFrameBytes = 32 << 20
	// maxFiles is how many descriptors the kernel takes in one message (SCM_MAX_FD is 253).
	maxFiles = 200
)

// command is what den tells the sentry; one field is set.
type command struct {
	Start  *request `json:",omitempty"`
	Signal int32    `json:",omitempty"`
	Resize *size    `json:",omitempty"`
	// Share is for a gofer.
	Share *goferCommand `json:",omitempty"`
	// Freeze holds the payload's processes, Thaw lets them go on.
	Freeze bool `json:",omitempty"`
	Thaw   bool `json:",omitempty"`
	// Hold and LetGo do it for a limit of processors.
	Hold  bool `json:",omitempty"`
	LetGo bool `json:",omitempty"`
	// Call brings the socket of a connection of its own, on which one of those below is answered,
	// however long that takes.
	Call bool       `json:",omitempty"`
	Exec *execution `json:",omitempty"`
	// Plug adds a network device, Unplug takes one away.
	Plug   *device `json:",omitempty"`
	Unplug string  `json:",omitempty"`
	// Stat, ReadTar and WriteTar are Filer's, ExportTo is Changer's; tars go through the pipe that comes along.
	Stat     string    `json:",omitempty"`
	ReadTar  *readTar  `json:",omitempty"`
	WriteTar *writeTar `json:",omitempty"`
	ExportTo bool      `json:",omitempty"`
	// Pause and Resume are Pauser's, Stats and Processes Inspector's.
	Pause     bool `json:",omitempty"`
	Resume    bool `json:",omitempty"`
	Stats     bool `json:",omitempty"`
	Processes bool `json:",omitempty"`
	// Limits replaces those of the request.
	Limits *limitSizes `json:",omitempty"`
	// Files is how many descriptors come with the frame.
	Files int `json:",omitempty"`
}

type size struct{ Rows, Cols uint16 }

// limitSizes bound a payload. 0 is no bound.
type limitSizes struct {
	// MaxPids bounds processes and threads. More memory than MaxMemoryBytes kills the payload.
	MaxPids, MaxMemoryBytes int64
}

// event is what the sentry tells den; one field is set.
type event struct {
	// Ready says that the sentry waits for a request.
	Ready bool `json:",omitempty"`
	// Warnings are sentences for the user, from a gofer.
	Warnings []string `json:",omitempty"`
	// Started says that the payload runs.
	Started bool     `json:",omitempty"`
	Failed  *failure `json:",omitempty"`
	Exit    *exit    `json:",omitempty"`
	Export  *export  `json:",omitempty"`
	// Gone is the last word about a sandbox of several in a sentry: nothing of it is held any more.
	Gone bool `json:",omitempty"`
	// Done says that a call did what it should.
	Done      bool              `json:",omitempty"`
	Stat      *sandbox.FileStat `json:",omitempty"`
	Stats     *sandbox.Stats    `json:",omitempty"`
	Processes []sandbox.Process `json:",omitempty"`
}

type readTar struct{ Name, As string }

type writeTar struct {
	Name    string
	Options sandbox.WriteTarOptions
}

// execution is one more program.
type execution struct {
	program
	// Unfiltered is without the payload's filter of system calls.
	Unfiltered bool
}

// failure is why a payload does not run. With a Code it is the program's fault.
type failure struct {
	Op, Path string
	Errno    int32
	Text     string
	Code     int
	// NotInPath says that PATH has no such program, IsBare that Errno alone is the cause.
	NotInPath, IsBare bool
	// Invalid says that what was asked for makes no sense.
	Invalid bool
}

// exit is how a payload ended.
type exit struct {
	Status uint32 // as wait(2) has it
	// Killed says for what the sentry itself has killed the payload.
	Killed killReason `json:",omitempty"`
}

// export ends the layer stream; Err is empty if it is complete.
type export struct{ Err string }

// program is a process to start. Numbers named FD are indices of the descriptors that
// come with it.
type program struct {
	Args, Env   []string
	Cwd         string
	UID, GID    uint32
	Groups      []uint32
	Umask       uint32
	Bounding    uint64
	Permitted   uint64
	Effective   uint64
	Inheritable uint64
	Ambient     uint64
	NoNewPrivs  bool
	Rlimits     []rlimit
	Terminal    *size
	TerminalFD  int
	StdioFD     [3]int
}

// request is a sandbox.Request for the sentry.
type request struct {
	program
	Filter     *payloadFilter `json:",omitempty"`
	Hostname   string
	Domainname string
	// InitFD is the plan of a process that does nothing; Init makes one process 1.
	InitFD   int
	Init     bool
	Root     root
	Mounts   []mount
	Masked   []string
	ReadOnly []string
	Network  string
	// Share says what the sandbox has in common with the one that it joins, beside the network.
	Share    sharing
	Devices  []device
	ExportFD int
	limitSizes
	// Processors is how many of them the payload may use, 0 is all.
	Processors int
	// More processes than MaxProcesses kill the payload. 0 is no bound.
	MaxProcesses int64
}

// sharing is about namespaces.
type sharing struct{ IPC, PIDs bool }

// killReason is why a sentry kills its payload.
type killReason string

const (
	killMemory    killReason = "memory"
	killProcesses killReason = "processes"
)

type rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// root is the root file system.
type root struct {
	// Lower are the parts of the layers, top first; without any the root is empty.
	Lower []lower
	// BindFD is the gofer of a root that is a directory of its own.
	BindFD   int
	UpperFD  int // backing file of what is written; -1 keeps it in memory
	Writable bool
	// ReadOnly is how the payload sees it.
	ReadOnly bool
}

// A lower is a part of a layer.
type lower struct {
	Kind lowerKind
	FD   int
}

// lowerKind is a form in which a lower comes.
type lowerKind string

const (
	kindImage lowerKind = "erofs"
	kindTar   lowerKind = "tar"
	kindGofer lowerKind = "gofer"
)

// mount is a mount below the root.
type mount struct {
	Type    string
	Target  string
	FD      int
	Options []string
	// Lower and Source are an overlay's.
	Lower  []lower
	Source string
	// Content is of a bound file that no gofer shows.
	Content *content `json:",omitempty"`
	// Kind is the type of what is bound, as in stat(2).
	Kind     uint16
	ReadOnly bool
	NoExec   bool
	NoSUID   bool
	NoDev    bool
}

// encode makes a frame.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFrameBytes {
		return nil, fmt.Errorf("request of %d bytes: %w", len(b), unix.E2BIG)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

// decode reads a frame.
func decode(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrameBytes {
		return fmt.Errorf("frame of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// send writes a frame with descriptors to a socket. The first bytes of the
// frame take the descriptors with them, maxFiles each.
func send(socket *os.File, c *command, files []*os.File) error {
	c.Files = len(files)
	b, err := encode(c)
	if err != nil {
		return err
	}
	conn, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	for len(files) > 0 {
		some := files[:min(len(files), maxFiles)]
		files = files[len(some):]
		fds := make([]int, len(some))
		for i, f := range some {
			fds[i] = int(f.Fd())
		}
		var serr error
		err := conn.Write(func(fd uintptr) bool {
			serr = unix.Sendmsg(int(fd), b[:1], unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			return !errors.Is(serr, unix.EAGAIN)
		})
		if err := errors.Join(err, serr); err != nil {
			return fmt.Errorf("send descriptors: %w", err)
		}
		b = b[1:]
	}
	_, err = socket.Write(b)
	return err
}
