package engine

import (
	"context"
	"io"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/image"
	"den/internal/network"
	"den/internal/sandbox"
)

// Create makes a container that Start starts.
func (e *Engine) Create(_ context.Context, _ *CreateRequest) (Created, error) {
	return Created{}, errdefs.ErrNotImplemented
}

// Start starts a container; errdefs.ErrNotModified says that it runs.
func (e *Engine) Start(_ context.Context, _ string) error { return errdefs.ErrNotImplemented }

// Restart stops a container if it runs, and starts it.
func (e *Engine) Restart(_ context.Context, _ string, _ StopOptions) error {
	return errdefs.ErrNotImplemented
}

// Kill sends a signal ("SIGTERM", "term", "15"; empty is SIGKILL).
func (e *Engine) Kill(_ context.Context, _, _ string) error { return errdefs.ErrNotImplemented }

// Pause stops all processes of a container until Resume.
func (e *Engine) Pause(_ context.Context, _ string) error { return errdefs.ErrNotImplemented }

// Resume lets a paused container go on.
func (e *Engine) Resume(_ context.Context, _ string) error { return errdefs.ErrNotImplemented }

// Rename gives a container another name.
func (e *Engine) Rename(_ context.Context, _, _ string) error { return errdefs.ErrNotImplemented }

// Update changes a container's limits and restart policy.
func (e *Engine) Update(_ context.Context, _ string, _ *UpdateRequest) (warnings []string, err error) {
	return nil, errdefs.ErrNotImplemented
}

// Resize tells a container's terminal its size.
func (e *Engine) Resize(_ context.Context, _ string, _ Size) error { return errdefs.ErrNotImplemented }

// Container describes a container; with sizes it counts what that takes on disk.
func (e *Engine) Container(_ context.Context, _ string, _ ...DescribeOption) (*Container, error) {
	return nil, errdefs.ErrNotImplemented
}

// Containers describes all containers, newest first.
func (e *Engine) Containers(_ context.Context, _ ...DescribeOption) ([]*Container, error) {
	return nil, errdefs.ErrNotImplemented
}

// A DescribeOption asks for what costs more than reading records.
type DescribeOption int

// WithSizes counts what a container's files take.
const WithSizes DescribeOption = iota

// Pruned is what a prune removed.
type Pruned struct {
	Names []string // or ids
	Bytes int64
}

// PruneContainers removes the containers that do not run and that keep says nothing against.
func (e *Engine) PruneContainers(_ context.Context, _ func(*Container) bool) (Pruned, error) {
	return Pruned{}, errdefs.ErrNotImplemented
}

// Top lists a running container's processes.
func (e *Engine) Top(_ context.Context, _ string) ([]sandbox.Process, error) {
	return nil, errdefs.ErrNotImplemented
}

// Stats is what a container uses now; zero for one that does not run.
func (e *Engine) Stats(_ context.Context, _ string) (Stats, error) {
	return Stats{}, errdefs.ErrNotImplemented
}

// Stats are a container's, and what they are to be compared with.
type Stats struct {
	sandbox.Stats
	// SystemCPU is the CPU time of the whole machine, CPUs their number.
	SystemCPU time.Duration
	CPUs      int
}

// A ChangeKind says what happened to a path.
type ChangeKind int

// The kinds of changes, numbered as docker does.
const (
	ChangeModified ChangeKind = iota
	ChangeAdded
	ChangeDeleted
)

// A Change is one path that differs from the image.
type Change struct {
	Path string
	Kind ChangeKind
}

// Changes lists what a container changed.
func (e *Engine) Changes(_ context.Context, _ string) ([]Change, error) {
	return nil, errdefs.ErrNotImplemented
}

// Export writes a container's file system, without volumes, to w as a tar.
func (e *Engine) Export(_ context.Context, _ string, _ io.Writer) error {
	return errdefs.ErrNotImplemented
}

// StatPath describes a path in a container, running or not. It does not follow a symbolic link at the end.
func (e *Engine) StatPath(_ context.Context, _, _ string) (sandbox.FileStat, error) {
	return sandbox.FileStat{}, errdefs.ErrNotImplemented
}

// ReadArchive is a tar of a path in a container, as docker cp reads it.
func (e *Engine) ReadArchive(_ context.Context, _, _ string) (io.ReadCloser, sandbox.FileStat, error) {
	return nil, sandbox.FileStat{}, errdefs.ErrNotImplemented
}

// WriteArchive unpacks a tar, compressed or not, into a directory of a container.
func (e *Engine) WriteArchive(_ context.Context, _, _ string, _ io.Reader, _ sandbox.WriteTarOptions) error {
	return errdefs.ErrNotImplemented
}

// CommitOptions say what image a container becomes.
type CommitOptions struct {
	// Name to give; empty leaves the image untagged.
	Name            string
	Author, Message string
	// Changes are Dockerfile instructions for the configuration.
	Changes []string
	// Pause holds the container while its files are read.
	Pause bool
	// Config, if set, wins over the container's where its fields are set.
	Config *dockerspec.DockerOCIImageConfig
}

// Commit makes an image of a container.
func (e *Engine) Commit(_ context.Context, _ string, _ CommitOptions) (*image.Image, error) {
	return nil, errdefs.ErrNotImplemented
}

// CreateVolume makes a volume, or returns the one that has the name.
func (e *Engine) CreateVolume(_ context.Context, _ VolumeRequest) (*Volume, error) {
	return nil, errdefs.ErrNotImplemented
}

// Volume describes a volume.
func (e *Engine) Volume(_ context.Context, _ string) (*Volume, error) {
	return nil, errdefs.ErrNotImplemented
}

// Volumes describes all volumes, by name.
func (e *Engine) Volumes(_ context.Context) ([]*Volume, error) { return nil, errdefs.ErrNotImplemented }

// VolumeUsers maps the names of volumes to the ids of the containers that have them.
func (e *Engine) VolumeUsers(_ context.Context) (map[string][]string, error) {
	return nil, errdefs.ErrNotImplemented
}

// RemoveVolume removes a volume that no container has.
func (e *Engine) RemoveVolume(_ context.Context, _ string) error { return errdefs.ErrNotImplemented }

// Networks describes all networks.
func (e *Engine) Networks(_ context.Context) ([]*network.Network, error) {
	return nil, errdefs.ErrNotImplemented
}

// Network describes a network.
func (e *Engine) Network(_ context.Context, _ string) (*network.Network, error) {
	return nil, errdefs.ErrNotImplemented
}

// NetworkEndpoints are the containers of a network.
func (e *Engine) NetworkEndpoints(_ context.Context, _ string) ([]network.Endpoint, error) {
	return nil, errdefs.ErrNotImplemented
}

// RemoveNetwork removes a network without endpoints.
func (e *Engine) RemoveNetwork(_ context.Context, _ string) error { return errdefs.ErrNotImplemented }

// ConnectNetwork puts a container into a network: now if it runs, else when it starts.
func (e *Engine) ConnectNetwork(_ context.Context, _ string, _ network.EndpointRequest) error {
	return errdefs.ErrNotImplemented
}

// DisconnectOptions refine DisconnectNetwork.
type DisconnectOptions struct{ Force bool }

// DisconnectNetwork takes a container out of a network.
func (e *Engine) DisconnectNetwork(_ context.Context, _, _ string, _ DisconnectOptions) error {
	return errdefs.ErrNotImplemented
}

// PruneNetworks removes the networks without endpoints that keep says nothing against.
func (e *Engine) PruneNetworks(_ context.Context, _ func(*network.Network) bool) (Pruned, error) {
	return Pruned{}, errdefs.ErrNotImplemented
}

// Events are those since a moment, and those to come until another or until ctx ends, when
// the channel is closed. A zero since begins now, a zero until never ends.
func (e *Engine) Events(_ context.Context, _, _ time.Time) (<-chan Event, error) {
	return nil, errdefs.ErrNotImplemented
}

// Emit tells who listens to Events that something happened; a zero Time is now.
func (e *Engine) Emit(_ Event) {}

// Supervise adopts the containers that run, applies restart policies and auto-removal to
// those that do not, and checks health; it returns when ctx ends.
func (e *Engine) Supervise(_ context.Context) error { return errdefs.ErrNotImplemented }

// Shutdown ends containers: all with EndAll, else those that cannot outlive this process.
func (e *Engine) Shutdown(_ context.Context, _ ShutdownMode) error { return errdefs.ErrNotImplemented }

// A ShutdownMode says which containers Shutdown ends.
type ShutdownMode int

// The modes of Shutdown.
const (
	EndDependent ShutdownMode = iota
	EndAll
)
