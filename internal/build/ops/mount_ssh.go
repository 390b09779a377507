package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"den/internal/oci"
)

// sshMount is a socket that leads to one of the build's agents; false when it
// is optional and there is none.
func (s *step) sshMount(ctx context.Context, m *pb.Mount, target string) (oci.Mount, bool, error) {
	o := m.SSHOpt
	if o == nil {
		return oci.Mount{}, false, fmt.Errorf("no ssh options: %w", errdefs.ErrInvalidArgument)
	}
	// An agent that cannot be reached is better told now than by the step.
	probe, err := s.env.agent(ctx, o.ID)
	if err != nil {
		if o.Optional && errdefs.IsNotFound(err) {
			err = nil
		}
		return oci.Mount{}, false, err
	}
	if err := probe.Close(); err != nil {
		return oci.Mount{}, false, err
	}
	dir, err := os.MkdirTemp("", "den-ssh-") // short: a socket's path has 107 bytes
	if err != nil {
		return oci.Mount{}, false, err
	}
	s.onClose(func() error { return os.RemoveAll(dir) })
	sock := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return oci.Mount{}, false, err
	}
	end := s.env.serveAgent(ctx, l, o.ID)
	s.onClose(end)
	if err := errors.Join(os.Chmod(sock, os.FileMode(o.Mode&0o777)), os.Lchown(sock, int(o.Uid), int(o.Gid))); err != nil {
		return oci.Mount{}, false, err
	}
	return oci.Mount{Type: "bind", Source: sock, Target: target, Options: []string{"bind", "nosuid", "nodev"}}, true, nil
}

// agent connects to an agent of the build; the empty id is "default".
func (e *Env) agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = defaultAgent
	}
	if e.SSH == nil {
		return nil, fmt.Errorf("ssh agent %s: not given to this build; add --ssh %s: %w", id, id, errdefs.ErrNotFound)
	}
	return e.SSH.Agent(ctx, id)
}

// serveAgent connects whoever comes to l with the agent. The returned function
// ends that and waits for it.
func (e *Env) serveAgent(ctx context.Context, l *net.UnixListener, id string) func() error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { e.proxyAgent(ctx, c, id) })
		}
	})
	return func() error {
		cancel()
		err := l.Close()
		wg.Wait()
		return err
	}
}

// proxyAgent copies between a client and the agent until one of them or ctx
// ends.
func (e *Env) proxyAgent(ctx context.Context, client net.Conn, id string) {
	defer client.Close()
	upstream, err := e.agent(ctx, id)
	if err != nil {
		return // the client sees its connection closed, as with a dead agent
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	wg.Go(func() { io.Copy(upstream, client); cancel() })
	wg.Go(func() { io.Copy(client, upstream); cancel() })
	<-ctx.Done()
	client.Close()
	upstream.Close()
	wg.Wait()
	cancel()
}

const defaultAgent = "default"

// An SSHAgent is one --ssh of the build.
type SSHAgent struct {
	// ID is "default" if empty.
	ID string
	// Paths are one socket of an agent or any number of private key files;
	// none is the agent of $SSH_AUTH_SOCK.
	Paths []string
}

// maxKeyBytes bounds a private key file.
const maxKeyBytes = 100 << 10

type sshAgents map[string]sshSource

// A sshSource is a socket, or keys held in this process.
type sshSource struct {
	socket string
	keys   agent.Agent
}

// NewSSH makes the agents of a build. A step can list and use their keys, and
// nothing else: it cannot add, remove or lock any.
func NewSSH(agents []SSHAgent) (SSH, error) {
	out := sshAgents{}
	for _, a := range agents {
		id := a.ID
		if id == "" {
			id = defaultAgent
		}
		if _, twice := out[id]; twice {
			return nil, fmt.Errorf("ssh agent %s: given twice: %w", id, errdefs.ErrInvalidArgument)
		}
		src, err := newSSHSource(a.Paths)
		if err != nil {
			return nil, fmt.Errorf("ssh agent %s: %w", id, err)
		}
		out[id] = src
	}
	return out, nil
}

func newSSHSource(paths []string) (sshSource, error) {
	if len(paths) == 0 || len(paths) == 1 && paths[0] == "" {
		sock := os.Getenv("SSH_AUTH_SOCK")
		if sock == "" {
			return sshSource{}, fmt.Errorf("no agent runs (SSH_AUTH_SOCK is empty); start one or name a key file: %w", errdefs.ErrInvalidArgument)
		}
		paths = []string{sock}
	}
	keys := agent.NewKeyring()
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return sshSource{}, err
		}
		if st.Mode()&os.ModeSocket != 0 {
			if len(paths) > 1 {
				return sshSource{}, fmt.Errorf("%s: a socket cannot be combined with other paths: %w", p, errdefs.ErrInvalidArgument)
			}
			return sshSource{socket: p}, nil
		}
		if err := addKey(keys, p); err != nil {
			return sshSource{}, err
		}
	}
	return sshSource{keys: keys}, nil
}

func addKey(keys agent.Agent, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(&boundedReader{r: f, left: maxKeyBytes, name: name})
	if err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	return keys.Add(agent.AddedKey{PrivateKey: key})
}

// Agent connects to the agent of that id.
func (a sshAgents) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	src, ok := a[id]
	if !ok {
		return nil, fmt.Errorf("ssh agent %s: not given to this build; add --ssh %s: %w", id, id, errdefs.ErrNotFound)
	}
	use := src.keys
	var upstream net.Conn
	if src.socket != "" {
		var d net.Dialer
		var err error
		if upstream, err = d.DialContext(ctx, "unix", src.socket); err != nil {
			return nil, fmt.Errorf("ssh agent %s: %w", id, err)
		}
		use = agent.NewClient(upstream)
	}
	here, there := net.Pipe()
	go func() {
		// Ends when the caller closes its side.
		agent.ServeAgent(readOnlyAgent{use}, there)
		there.Close()
		if upstream != nil {
			upstream.Close()
		}
	}()
	return here, nil
}

// errAgentReadOnly answers what would change the user's agent.
var errAgentReadOnly = errors.New("a build cannot change the agent")

// A readOnlyAgent lists keys and signs.
type readOnlyAgent struct{ agent.Agent }

func (readOnlyAgent) Add(agent.AddedKey) error   { return errAgentReadOnly }
func (readOnlyAgent) Remove(ssh.PublicKey) error { return errAgentReadOnly }
func (readOnlyAgent) RemoveAll() error           { return errAgentReadOnly }
func (readOnlyAgent) Lock([]byte) error          { return errAgentReadOnly }
func (readOnlyAgent) Unlock([]byte) error        { return errAgentReadOnly }
