package dockerapi

import (
	"context"
	"io"
	"time"

	"den/internal/engine"
	"den/internal/image"
	"den/internal/network"
	"den/internal/sandbox"
)

// Engine is what the server needs of den's engine. Names and ids of objects go
// through as clients send them.
type Engine interface {
	containerEngine
	fileEngine
	execEngine
	volumeEngine
	networkEngine
	Commit(ctx context.Context, id string, o engine.CommitOptions) (*image.Image, error)
	Emit(e engine.Event)
	Events(ctx context.Context, since, until time.Time) (<-chan engine.Event, error)
}

type containerEngine interface {
	Create(ctx context.Context, r *engine.CreateRequest) (engine.Created, error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, o engine.StopOptions) error
	Restart(ctx context.Context, id string, o engine.StopOptions) error
	Kill(ctx context.Context, id, signal string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	Update(ctx context.Context, id string, r *engine.UpdateRequest) (warnings []string, err error)
	Resize(ctx context.Context, id string, size engine.Size) error
	Remove(ctx context.Context, id string, o engine.RemoveOptions) error
	Wait(ctx context.Context, id string, c engine.WaitCondition) (<-chan engine.WaitResult, error)
	Attach(ctx context.Context, id string, o engine.AttachOptions) (Attachment, error)
	Detached(container, exec string)
	Logs(ctx context.Context, id string, o engine.LogOptions) (Log, error)
	Container(ctx context.Context, id string, o ...engine.DescribeOption) (*engine.Container, error)
	Containers(ctx context.Context, o ...engine.DescribeOption) ([]*engine.Container, error)
	PruneContainers(ctx context.Context, keep func(*engine.Container) bool) (engine.Pruned, error)
	Top(ctx context.Context, id string) ([]sandbox.Process, error)
	Stats(ctx context.Context, id string) (engine.Stats, error)
}

type fileEngine interface {
	Changes(ctx context.Context, id string) ([]engine.Change, error)
	Export(ctx context.Context, id string, w io.Writer) error
	StatPath(ctx context.Context, id, path string) (sandbox.FileStat, error)
	ReadArchive(ctx context.Context, id, path string) (io.ReadCloser, sandbox.FileStat, error)
	WriteArchive(ctx context.Context, id, path string, r io.Reader, o sandbox.WriteTarOptions) error
}

type execEngine interface {
	CreateExec(ctx context.Context, container string, c engine.ExecConfig) (string, error)
	StartExec(ctx context.Context, id string, s engine.ExecStreams) error
	ResizeExec(ctx context.Context, id string, size engine.Size) error
	InspectExec(ctx context.Context, id string) (*engine.Exec, error)
}

type volumeEngine interface {
	CreateVolume(ctx context.Context, r engine.VolumeRequest) (*engine.Volume, error)
	Volume(ctx context.Context, name string) (*engine.Volume, error)
	Volumes(ctx context.Context) ([]*engine.Volume, error)
	VolumeUsers(ctx context.Context) (map[string][]string, error)
	RemoveVolume(ctx context.Context, name string) error
	PruneVolumes(ctx context.Context, keep func(*engine.Volume) bool) (engine.Pruned, error)
}

type networkEngine interface {
	CreateNetwork(ctx context.Context, r network.CreateRequest) (*network.Network, error)
	Network(ctx context.Context, id string) (*network.Network, error)
	Networks(ctx context.Context) ([]*network.Network, error)
	NetworkEndpoints(ctx context.Context, id string) ([]network.Endpoint, error)
	RemoveNetwork(ctx context.Context, id string) error
	ConnectNetwork(ctx context.Context, container string, r network.EndpointRequest) error
	DisconnectNetwork(ctx context.Context, container, id string, o engine.DisconnectOptions) error
	PruneNetworks(ctx context.Context, keep func(*network.Network) bool) (engine.Pruned, error)
}

// An Attachment is engine.Attachment.
type Attachment interface {
	TTY() bool
	Stdin() io.WriteCloser
	Copy(ctx context.Context, stdout, stderr io.Writer) error
	Close() error
}

// A Log is engine.LogReader.
type Log interface {
	TTY() bool
	Copy(ctx context.Context, stdout, stderr io.Writer) error
	Close() error
}

// For makes an engine one that a Server serves.
func For(e *engine.Engine) Engine { return served{e} }

type served struct{ *engine.Engine }

func (s served) Attach(ctx context.Context, id string, o engine.AttachOptions) (Attachment, error) {
	a, err := s.Engine.Attach(ctx, id, o)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (s served) Logs(ctx context.Context, id string, o engine.LogOptions) (Log, error) {
	l, err := s.Engine.Logs(ctx, id, o)
	if err != nil {
		return nil, err
	}
	return l, nil
}
