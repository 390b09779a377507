package ops

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
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
	dir, remove, err := newScratch(socketDir(s.env))
	if err != nil {
		return oci.Mount{}, false, err
	}
	s.onClose(remove)
	sock := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return oci.Mount{}, false, err
	}
	end := s.env.serveAgent(ctx, l, o.ID)
	s.onClose(end)
	if err := s.env.ownSocket(sock, madeOwner{uid: o.Uid, gid: o.Gid, mode: o.Mode}); err != nil {
		return oci.Mount{}, false, err
	}
	return oci.Mount{Type: "bind", Source: sock, Target: target, Options: []string{"bind", "nosuid", "nodev"}}, true, nil
}

// socketDir is where sockets are made: its path is short, and a socket's has 107 bytes.
func socketDir(e *Env) string {
	dir, _ := memoise(e, "socket directory", func() (string, error) {
		dir := os.TempDir()
		sweepScratch(dir, time.Now())
		return dir, nil
	})
	return dir
}

// maxAgentClients bounds the connections of one step to an agent at a time, each with a
// descriptor or two of den's and a request in memory; others wait in the kernel's queue.
const maxAgentClients = 32

// ownSocket gives a socket to somebody, or records that it is theirs.
func (e *Env) ownSocket(path string, o madeOwner) error {
	if err := os.Chmod(path, os.FileMode(o.mode&0o777)); err != nil {
		return err
	}
	if !e.Recorded {
		return os.Lchown(path, int(o.uid), int(o.gid))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	want := sys.Inode{Mode: unix.S_IFSOCK | o.mode&0o777, UID: o.uid, GID: o.gid}
	return sys.RecordName(int(dir.Fd()), filepath.Base(path), &st, want, sys.Self())
}

// agent connects to an agent of the build; the empty id is "default".
func (e *Env) agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = "default"
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
	slots := make(chan struct{}, maxAgentClients)
	wg.Go(func() {
		for {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				e.proxyAgent(ctx, c, id)
			})
		}
	})
	return func() error {
		cancel()
		err := l.Close()
		wg.Wait()
		return err
	}
}

// proxyAgent connects a client with the agent until one of them or ctx ends.
func (e *Env) proxyAgent(ctx context.Context, client net.Conn, id string) {
	defer client.Close()
	upstream, err := e.agent(ctx, id)
	if err != nil {
		return // the client sees its connection closed, as with a dead agent
	}
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		upstream.Close()
	})
	defer stop()
	defer upstream.Close()
	filterAgent(client, upstream)
}
