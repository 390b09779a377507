package dockerapi

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/engine"
	"den/internal/network"
	"den/internal/sandbox"
)

// A fake is an engine whose containers do what a test says. What it does not have
// panics, which a server answers with status 500.
type fake struct {
	Engine
	mu         sync.Mutex
	containers []*engine.Container
	networks   []*network.Network
	endpoints  map[string][]network.Endpoint
	volumes    []*engine.Volume
	users      map[string][]string
	created    *engine.CreateRequest
	network    *network.CreateRequest
	connected  network.EndpointRequest
	updated    *engine.UpdateRequest
	kept       []string // what a prune was told to keep
	calls      []string
	err        error
	attachment *fakeAttachment
	log        func(ctx context.Context, stdout, stderr io.Writer) error
	tty        bool
	waits      chan engine.WaitResult
	events     chan engine.Event
	execs      map[string]*engine.Exec
	exec       func(s engine.ExecStreams) error
	samples    []engine.Stats
	processes  []sandbox.Process
	stat       sandbox.FileStat
	archive    string
	written    []byte
}

func (f *fake) called(what ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.Join(what, " "))
	return f.err
}

func (f *fake) Create(_ context.Context, r *engine.CreateRequest) (engine.Created, error) {
	f.created = r
	return engine.Created{ID: strings.Repeat("c", 64)}, f.called("create")
}

func (f *fake) Container(_ context.Context, id string, _ ...engine.DescribeOption) (*engine.Container, error) {
	for _, c := range f.containers {
		if c.ID == id || c.Name == id {
			return c, nil
		}
	}
	return nil, notFound("No such container: %s", id)
}

func (f *fake) Containers(context.Context, ...engine.DescribeOption) ([]*engine.Container, error) {
	return f.containers, f.err
}

func (f *fake) Start(_ context.Context, id string) error { return f.called("start", id) }
func (f *fake) Stop(_ context.Context, id string, o engine.StopOptions) error {
	if err := f.called("stop", id, o.Signal, seconds(o.Seconds)); err != nil {
		return err
	}
	c, err := f.Container(context.Background(), id)
	if err == nil && !c.State.Running {
		err = errdefs.ErrNotModified
	}
	return err
}
func (f *fake) Restart(_ context.Context, id string, o engine.StopOptions) error {
	return f.called("restart", id, o.Signal, seconds(o.Seconds))
}
func (f *fake) Kill(_ context.Context, id, signal string) error { return f.called("kill", id, signal) }
func (f *fake) Pause(_ context.Context, id string) error        { return f.called("pause", id) }
func (f *fake) Resume(_ context.Context, id string) error       { return f.called("resume", id) }
func (f *fake) Rename(_ context.Context, id, name string) error { return f.called("rename", id, name) }

func (f *fake) Remove(_ context.Context, id string, o engine.RemoveOptions) error {
	what := []string{"remove", id}
	for word, on := range map[string]bool{"force": o.Force, "volumes": o.Volumes, "link": o.Link} {
		if on {
			what = append(what, word)
		}
	}
	slices.Sort(what[2:])
	return f.called(what...)
}

func seconds(s *int) string {
	if s == nil {
		return "-"
	}
	return time.Duration(*s * int(time.Second)).String()
}

func (f *fake) Update(_ context.Context, _ string, r *engine.UpdateRequest) ([]string, error) {
	f.updated = r
	return nil, f.called("update")
}

func (f *fake) Wait(context.Context, string, engine.WaitCondition) (<-chan engine.WaitResult, error) {
	return f.waits, f.called("wait")
}

func (f *fake) Logs(context.Context, string, engine.LogOptions) (Log, error) {
	return &fakeLog{f}, f.called("logs")
}

type fakeLog struct{ f *fake }

func (l *fakeLog) TTY() bool { return l.f.tty }
func (l *fakeLog) Copy(ctx context.Context, stdout, stderr io.Writer) error {
	return l.f.log(ctx, stdout, stderr)
}
func (l *fakeLog) Close() error { return nil }

// A fakeAttachment echoes its input to its output until that ends.
type fakeAttachment struct {
	tty   bool
	in    *io.PipeReader
	stdin *io.PipeWriter
	copy  func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error
}

func (f *fake) Attach(_ context.Context, _ string, o engine.AttachOptions) (Attachment, error) {
	if f.err != nil {
		return nil, f.err
	}
	a := *f.attachment
	if o.Stdin {
		a.in, a.stdin = io.Pipe()
	}
	return &a, f.called("attach")
}

func (f *fake) Detached(container, exec string) { _ = f.called("detached", container, exec) }

func (a *fakeAttachment) TTY() bool { return a.tty }
func (a *fakeAttachment) Stdin() io.WriteCloser {
	if a.stdin == nil {
		return nil
	}
	return a.stdin
}
func (a *fakeAttachment) Copy(ctx context.Context, stdout, stderr io.Writer) error {
	return a.copy(ctx, a.in, stdout, stderr)
}
func (a *fakeAttachment) Close() error {
	if a.in != nil {
		return a.in.Close()
	}
	return nil
}

func (f *fake) Events(context.Context, time.Time, time.Time) (<-chan engine.Event, error) {
	return f.events, f.called("events")
}

func (f *fake) CreateExec(_ context.Context, id string, c engine.ExecConfig) (string, error) {
	f.mu.Lock()
	f.execs = map[string]*engine.Exec{"e1": {ID: "e1", ContainerID: id, Config: c}}
	f.mu.Unlock()
	return "e1", f.called("exec", id)
}

func (f *fake) InspectExec(_ context.Context, id string) (*engine.Exec, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.execs[id]
	if !ok {
		return nil, notFound("No such exec instance: %s", id)
	}
	out := *e
	return &out, nil
}

func (f *fake) StartExec(_ context.Context, id string, s engine.ExecStreams) error {
	err := f.exec(s)
	code := 3
	f.mu.Lock()
	f.execs[id].ExitCode = &code
	f.mu.Unlock()
	return err
}

func (f *fake) Stats(context.Context, string) (engine.Stats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.samples) == 0 {
		return engine.Stats{}, nil
	}
	s := f.samples[0]
	f.samples = f.samples[1:]
	return s, nil
}

func (f *fake) Top(context.Context, string) ([]sandbox.Process, error) { return f.processes, f.err }

func (f *fake) StatPath(context.Context, string, string) (sandbox.FileStat, error) {
	return f.stat, f.err
}

func (f *fake) ReadArchive(context.Context, string, string) (io.ReadCloser, sandbox.FileStat, error) {
	return io.NopCloser(strings.NewReader(f.archive)), f.stat, f.err
}

func (f *fake) WriteArchive(_ context.Context, _, path string, r io.Reader, o sandbox.WriteTarOptions) (err error) {
	f.written, err = io.ReadAll(r)
	if err != nil {
		return err
	}
	what := []string{"write", path}
	if o.KeepKinds {
		what = append(what, "keep-kinds")
	}
	if o.CopyOwners {
		what = append(what, "copy-owners")
	}
	return f.called(what...)
}

func (f *fake) Volumes(context.Context) ([]*engine.Volume, error) { return f.volumes, f.err }
func (f *fake) VolumeUsers(context.Context) (map[string][]string, error) {
	return f.users, f.err
}
func (f *fake) CreateVolume(_ context.Context, r engine.VolumeRequest) (*engine.Volume, error) {
	return &engine.Volume{Name: r.Name, Labels: r.Labels, Options: r.Options}, f.called("volume", r.Name)
}
func (f *fake) RemoveVolume(_ context.Context, name string) error {
	return f.called("remove-volume", name)
}
func (f *fake) PruneVolumes(_ context.Context, keep func(*engine.Volume) bool) (engine.Pruned, error) {
	var p engine.Pruned
	for _, v := range f.volumes {
		if keep(v) {
			f.kept = append(f.kept, v.Name)
		} else {
			p.Names = append(p.Names, v.Name)
		}
	}
	return p, nil
}

func (f *fake) Networks(context.Context) ([]*network.Network, error) { return f.networks, f.err }
func (f *fake) Network(_ context.Context, id string) (*network.Network, error) {
	for _, n := range f.networks {
		if n.ID == id || n.Name == id {
			return n, nil
		}
	}
	return nil, notFound("network %s not found", id)
}
func (f *fake) NetworkEndpoints(_ context.Context, id string) ([]network.Endpoint, error) {
	return f.endpoints[id], nil
}
func (f *fake) CreateNetwork(_ context.Context, r network.CreateRequest) (*network.Network, error) {
	f.network = &r
	return &network.Network{ID: "n1", Name: r.Name}, f.called("network")
}
func (f *fake) RemoveNetwork(_ context.Context, id string) error {
	return f.called("remove-network", id)
}
func (f *fake) ConnectNetwork(_ context.Context, id string, r network.EndpointRequest) error {
	f.connected = r
	return f.called("connect", id)
}
func (f *fake) DisconnectNetwork(_ context.Context, id, name string, o engine.DisconnectOptions) error {
	if o.Force {
		name += " force"
	}
	return f.called("disconnect", id, name)
}

func (f *fake) Resize(_ context.Context, id string, s engine.Size) error {
	return f.called("resize", id, strconv.Itoa(int(s.Rows)), strconv.Itoa(int(s.Cols)))
}
func (f *fake) ResizeExec(_ context.Context, id string, s engine.Size) error {
	return f.called("resize-exec", id, strconv.Itoa(int(s.Rows)), strconv.Itoa(int(s.Cols)))
}
func (f *fake) Changes(context.Context, string) ([]engine.Change, error) {
	return []engine.Change{{Path: "/x", Kind: engine.ChangeDeleted}}, f.err
}
func (f *fake) Export(_ context.Context, _ string, w io.Writer) error {
	_, err := io.WriteString(w, f.archive)
	return err
}
func (f *fake) Volume(_ context.Context, name string) (*engine.Volume, error) {
	for _, v := range f.volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return nil, notFound("get %s: no such volume", name)
}
func (f *fake) PruneContainers(_ context.Context, keep func(*engine.Container) bool) (p engine.Pruned, err error) {
	for _, c := range f.containers {
		if keep(c) {
			f.kept = append(f.kept, c.ID)
		} else {
			p.Names = append(p.Names, c.ID)
		}
	}
	return p, f.err
}
func (f *fake) PruneNetworks(_ context.Context, keep func(*network.Network) bool) (p engine.Pruned, err error) {
	for _, n := range f.networks {
		if keep(n) {
			f.kept = append(f.kept, n.Name)
		} else {
			p.Names = append(p.Names, n.Name)
		}
	}
	return p, f.err
}
