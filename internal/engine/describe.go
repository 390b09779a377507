package engine

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/network"
	"den/internal/oci"
)

// A Container is everything that inspect shows.
type Container struct {
	ID, Name string // Name without a slash
	// Request is what was asked for, with what was updated since. It must not be changed.
	Request *CreateRequest
	// Image is the name that was asked for, ConfigDigest what it was then.
	Image        string
	ConfigDigest oci.Digest
	// Config is the request's configuration on top of the image's.
	Config   dockerspec.DockerOCIImageConfig
	Platform oci.Platform
	Command  []string
	// Labels are the image's and the request's.
	Labels       map[string]string
	Created      time.Time
	State        State
	RestartCount int
	// StorageDriver is the snapshot driver's name.
	StorageDriver string
	// LogPath is empty for a container without a log.
	LogPath, HostnamePath, HostsPath, ResolvConfPath string
	Mounts                                           []MountPoint
	// Networks are the endpoints that the container has now, or asks for while it does not run.
	Networks []NetworkEndpoint
	// NetworkMode is Request.NetworkMode with a container's name replaced by its id, and the default's name.
	NetworkMode string
	ExecIDs     []string
	// Writable and RootBytes are the sizes of what the container wrote and of its whole
	// root file system; nil unless they were asked for.
	WritableBytes, RootBytes *int64
}

// A State is where a container is in its life.
type State struct {
	// Status is created, running, paused, restarting, removing, exited or dead.
	Status string
	// Running is also true while the container is paused or about to be restarted, as in docker.
	Running, Paused, Restarting, Dead bool
	OOMKilled                         bool
	// Pid is the first process as den sees it; 0 when none runs.
	Pid int
	// ExitCode is that of the last run.
	ExitCode int
	// Error is why the program could not be started.
	Error             string
	Started, Finished time.Time
	// Health is nil without a check.
	Health *Health
}

// Health is how a container's check went.
type Health struct {
	// Status is starting, healthy or unhealthy.
	Status        string
	FailingStreak int
	// Log holds the last five results, oldest first.
	Log []HealthResult
}

// A HealthResult is one run of a health check.
type HealthResult struct {
	Start, End time.Time
	// ExitCode is 0 for healthy, -1 when the check could not be run or took too long.
	ExitCode int
	// Output is at most 4096 bytes.
	Output string
}

// A MountPoint is a mount as inspect shows it.
type MountPoint struct {
	Kind MountKind
	// Name is a volume's, Source the directory around den.
	Name, Source, Target string
	ReadOnly             bool
	// Options are those of the mount, joined by commas.
	Options string
}

// A NetworkEndpoint is a container's place in a network that it has, or will have when it runs.
type NetworkEndpoint struct {
	NetworkName string
	// Endpoint has no ID while the container does not run.
	network.Endpoint
	// Gateway4 and Gateway6 are the network's.
	Gateway4, Gateway6 string
	// Request is what was asked for.
	Request network.EndpointRequest
}

// A WaitCondition says what Wait waits for.
type WaitCondition string

// The conditions of docker's wait.
const (
	WaitNotRunning WaitCondition = "not-running"
	WaitNextExit   WaitCondition = "next-exit"
	WaitRemoved    WaitCondition = "removed"
)

// A WaitResult is how the container ended; Err is den's own trouble.
type WaitResult struct {
	Code int
	Err  error
}

// An Event is something that happened to an object of this engine.
type Event struct {
	// Type is container, image, volume, network, builder or daemon.
	Type string
	// Action is docker's: create, start, die...
	Action string
	// ID is the object's: a container's or network's id, an image's digest or name, a volume's name.
	ID string
	// Attributes are docker's: name, image, exitCode and the container's labels.
	Attributes map[string]string
	Time       time.Time
	// Departed is the exit code of a container that has removed itself, with its destroy; nil
	// with all others. It is for Wait, and not docker's.
	Departed *int
}
