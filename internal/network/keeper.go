package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Keeper starts, asks and ends the den-nets of one engine's networks: it is what
// drivers have in common that keep a process for each network.
type Keeper struct {
	dir    string
	driver string

	mu sync.Mutex
	// met are the sockets of den-nets that have said who they are, by network.
	met map[string]os.FileInfo
}

// NewKeeper returns the keeper for networks in dir, Networks' directory, whose
// den-nets are to have the Link called driver.
func NewKeeper(dir, driver string) (*Keeper, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &Keeper{dir: dir, driver: driver}, nil
}

func (k *Keeper) network(n *Network) string { return filepath.Join(k.dir, n.ID) }

// Start makes sure that n has a den-net which answers; the caller has n's lock.
func (k *Keeper) Start(ctx context.Context, n *Network) error {
	// Asking it takes two changes of processes, on a busy machine some milliseconds each.
	socket, _ := os.Lstat(filepath.Join(k.network(n), socketFile))
	if socket != nil && k.knows(n, socket) && k.Alive(n) {
		return nil
	}
	a, _, err := call(ctx, k.network(n), request{Op: opHello})
	if err == nil && a.Version == controlVersion && a.Driver == k.driver && a.MTU == n.MTU && a.NoHostLoopback == n.NoHostLoopback {
		k.note(n, socket)
		return nil
	}
	if err == nil { // of another den, or of what the record said before; it reads from the records what the new one has to do
		if err := k.Stop(ctx, n); err != nil {
			return err
		}
	}
	return k.spawn(ctx, n)
}

// knows says that the den-net with this socket has said who it is.
func (k *Keeper) knows(n *Network, socket os.FileInfo) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	met := k.met[n.ID]
	return met != nil && os.SameFile(met, socket) && met.ModTime().Equal(socket.ModTime())
}

// note remembers that the den-net with this socket has said who it is; nil forgets it.
func (k *Keeper) note(n *Network, socket os.FileInfo) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if socket == nil {
		delete(k.met, n.ID)
		return
	}
	if k.met == nil {
		k.met = map[string]os.FileInfo{}
	}
	k.met[n.ID] = socket
}

// spawn starts a den-net and waits until it is ready.
func (k *Keeper) spawn(ctx context.Context, n *Network) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	p, err := k.exec(n, w)
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("start den-net: %w", err)
	}
	go func() { _, _ = p.Wait() }() // it outlives this process, or ends before
	if t, ok := ctx.Deadline(); ok {
		err = r.SetReadDeadline(t)
	} else {
		err = r.SetReadDeadline(time.Now().Add(controlTimeout))
	}
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
	b, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return errors.Join(fmt.Errorf("start den-net: %w", err), p.Kill())
	}
	switch {
	case bytes.Equal(b, []byte("ok")):
		return nil
	case len(b) == 0:
		return fmt.Errorf("start den-net: it ended before it was ready; %s has what it said", filepath.Join(k.network(n), processLog))
	}
	return errors.New(string(bytes.TrimPrefix(b, []byte("ok"))))
}

// exec starts this program as a den-net, in a session of its own, with nothing
// of this process but what it needs.
func (k *Keeper) exec(n *Network, ready *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	out, err := os.OpenFile(filepath.Join(k.network(n), processLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	var env []string
	for _, name := range []string{"DEN_FAILPOINTS", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return os.StartProcess("/proc/self/exe", []string{ProcessName, k.network(n), k.driver}, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, out, out, ready}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

// Stop ends n's den-net if it has one, and returns when it has ended.
func (k *Keeper) Stop(ctx context.Context, n *Network) error {
	k.note(n, nil)
	f, err := os.OpenFile(filepath.Join(k.network(n), processLock), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Nobody who answers may still be somebody who is about to.
	var silent error
	for end := time.Now().Add(busyTime); ; {
		gone, err := sys.TryFlock(f, unix.LOCK_EX)
		if gone || err != nil {
			return err
		}
		if _, _, err := call(ctx, k.network(n), request{Op: opStop}); err != nil {
			silent = err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("stop den-net of network %s: it does not end", n.Name), silent)
		}
		time.Sleep(5 * time.Millisecond) // there is no waiting for a lock with a deadline
	}
}

// Alive says that n has a den-net.
func (k *Keeper) Alive(n *Network) bool {
	f, err := os.OpenFile(filepath.Join(k.network(n), processLock), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	free, err := sys.TryFlock(f, unix.LOCK_SH)
	return err == nil && !free
}

// Publish is Driver's: the den-net opens the ports.
func (k *Keeper) Publish(ctx context.Context, n *Network, e *Endpoint) ([]Port, error) {
	a, _, err := call(ctx, k.network(n), request{Op: opPublish, Endpoint: e})
	if err != nil {
		return nil, err
	}
	return a.Ports, nil
}

// Withdraw is Driver's. Where there is no den-net, no port is open.
func (k *Keeper) Withdraw(ctx context.Context, n *Network, e *Endpoint) error {
	_, err := k.withdraw(ctx, n, e)
	return err
}

// withdraw returns the ports that were open. Who died before the record said which
// there are had an endpoint that is the gateway.
func (k *Keeper) withdraw(ctx context.Context, n *Network, e *Endpoint) ([]Port, error) {
	if len(e.Ports) == 0 && !e.Gateway {
		return nil, nil
	}
	return k.tell(ctx, n, request{Op: opWithdraw, Endpoint: e})
}

// Names is Driver's: the den-net reads the zone that Networks has written.
func (k *Keeper) Names(ctx context.Context, n *Network, _ *Zone) error {
	_, err := k.tell(ctx, n, request{Op: opNames})
	return err
}

// tell is call for what a den-net that is dead need not know: the next one reads
// it from the records.
func (k *Keeper) tell(ctx context.Context, n *Network, r request) ([]Port, error) {
	a, _, err := call(ctx, k.network(n), r)
	var reported *reportedError
	switch {
	case err == nil:
		return a.Ports, nil
	case !errors.As(err, &reported) && !k.Alive(n):
		return nil, nil
	}
	return nil, err
}

// Resolver is Driver's: the gateway, where den-net answers.
func (k *Keeper) Resolver(n *Network) netip.Addr {
	if as := n.Gateways(); len(as) > 0 {
		return as[0]
	}
	return netip.Addr{}
}

// Namespace is the network namespace of n's bridge, which its den-net keeps; the caller closes it.
func (k *Keeper) Namespace(ctx context.Context, n *Network) (*os.File, error) {
	_, f, err := call(ctx, k.network(n), request{Op: opNamespace})
	if err == nil && f == nil {
		err = fmt.Errorf("network %s: its den-net keeps no namespace", n.Name)
	}
	return f, err
}
