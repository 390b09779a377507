package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// ProcessName is argv[0] of a network's own process.
const ProcessName = "den-net"

const (
	processLock = "den-net.lock"
	processLog  = "den-net.log"
	// busyTime is how long a new den-net waits for the end of the one before.
	busyTime = 30 * time.Second
	// watchEvery is how often a den-net looks whether anybody needs it, and for how long
	// it stays after its last container.
	watchEvery = 30 * time.Second
	// restAfter is when what only the start of a den-net needed is given back.
	restAfter = 2 * time.Second
	// readyFD is where a new den-net says that it is ready, or why not.
	readyFD = 3
)

// Main runs a network's den-net if this process was started as one, or TryInUserns' trial;
// then it returns true when that ends. links are the drivers besides bridge whose networks need one.
func Main(links ...Link) bool {
	if filepath.Base(os.Args[0]) != ProcessName {
		return false
	}
	if len(os.Args) == 2 && os.Args[1] == trialArgument {
		if err := Try().write(os.Stdout); err != nil {
			log.Print(err)
			os.Exit(1)
		}
		return true
	}
	if len(os.Args) != 3 {
		return false
	}
	_ = os.WriteFile("/proc/self/comm", []byte(ProcessName), 0) // for ps, which would show "exe"
	ready := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	p := &process{dir: os.Args[1], open: map[string]*opening{}, stop: make(chan struct{})}
	err := p.run(os.Args[2], append(links, bridgeLink()), ready)
	if err != nil {
		_, _ = fmt.Fprint(ready, err.Error()) // nobody may be there any more
		log.Print(err)
		os.Exit(1)
	}
	return true
}

func bridgeLink() Link { return Link{Driver: BridgeDriver, Open: openKernelSide, Down: downBridge} }

// A process is a running den-net.
type process struct {
	dir   string
	n     *Network
	down  func(*Network) error // Link's
	side  Side
	names *NameServer

	mu   sync.Mutex
	open map[string]*opening // by endpoint
	stop chan struct{}       // closed by opStop
	once sync.Once
}

// run is the life of a den-net; lock is held as long as it lives.
func (p *process) run(driver string, links []Link, ready *os.File) error {
	lock, err := p.lock()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if p.n, err = ReadNetwork(p.dir); err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(l Link) bool { return l.Driver == driver })
	if i < 0 {
		return fmt.Errorf("den-net: no driver %q", driver)
	}
	p.down = links[i].Down
	if p.side, err = links[i].Open(context.Background(), p.dir, p.n); err != nil {
		return err
	}
	defer func() { _ = p.side.Close() }()
	if err := p.serveNames(); err != nil {
		return err
	}
	defer func() { _ = p.names.Close() }()
	p.reopen()
	defer p.closeAll()
	l, err := p.listen()
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	var work sync.WaitGroup
	defer work.Wait()
	defer func() { _ = l.Close() }()
	work.Go(func() { p.accept(l, driver) })
	if _, err := io.WriteString(ready, "ok"); err != nil {
		return fmt.Errorf("den-net: %w", err)
	}
	if err := ready.Close(); err != nil {
		return err
	}
	return p.watch(lock)
}

// lock waits for the end of the den-net before, which may be on its way out.
func (p *process) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.dir, processLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(busyTime); ; {
		ok, err := sys.TryFlock(f, unix.LOCK_EX)
		if ok {
			return f, nil
		}
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("den-net: another one has %s and does not answer: end it, it is the process that has the file open", f.Name())
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		time.Sleep(20 * time.Millisecond) // there is no waiting for a lock with a deadline
	}
}

func (p *process) serveNames() error {
	outer := OuterServers("/etc/resolv.conf")
	if p.n.Internal {
		outer = nil
	}
	p.names = NewNameServer(p.n, outer)
	if err := p.readZone(); err != nil {
		return err
	}
	packets, err := p.side.ListenPacket(53)
	if err != nil {
		return fmt.Errorf("den-net: DNS: %w", err)
	}
	streams, err := p.side.Listen(53)
	if err != nil {
		return errors.Join(fmt.Errorf("den-net: DNS: %w", err), closeAll(packets))
	}
	return p.names.Serve(packets, streams)
}

func (p *process) readZone() error {
	z, err := ReadZone(p.dir)
	if err != nil {
		return err
	}
	p.names.SetZone(z)
	return nil
}

// reopen opens the ports that the records say. What somebody took meanwhile is
// told to who publishes it again (Networks.Reconcile).
func (p *process) reopen() {
	es, err := ReadEndpoints(p.dir)
	if err != nil {
		log.Print(err)
	}
	for _, e := range es {
		if len(e.Ports) == 0 {
			continue // or it is just being published
		}
		if _, err := p.publish(&e); err != nil {
			log.Print(err)
		}
	}
}

func (p *process) publish(e *Endpoint) ([]Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.open[e.ID]; o != nil {
		return o.ports, nil
	}
	o, err := openPorts(p.side, e)
	if err != nil {
		return nil, err
	}
	p.open[e.ID] = o
	return o.ports, nil
}

// withdraw closes an endpoint's ports and returns them.
func (p *process) withdraw(id string) ([]Port, error) {
	p.mu.Lock()
	o := p.open[id]
	delete(p.open, id)
	p.mu.Unlock()
	if o == nil {
		return nil, nil
	}
	return o.ports, o.Close()
}

func (p *process) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.open {
		_ = o.Close()
	}
}

func (p *process) listen() (*net.UnixListener, error) {
	d, err := os.Open(p.dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	if err := forget(filepath.Join(p.dir, socketFile)); err != nil {
		return nil, err // of one that was killed: this one has the lock
	}
	l, err := net.ListenUnix("unix", socketAddress(d))
	if err != nil {
		return nil, fmt.Errorf("den-net: control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // its name is relative to a descriptor that is closed
	return l, nil
}

// accept answers requests until the listener is closed, and those under way after that.
func (p *process) accept(l *net.UnixListener, driver string) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Print(err)
			time.Sleep(100 * time.Millisecond) // no descriptors: they come back
			continue
		}
		work.Go(func() {
			defer func() { _ = c.Close() }()
			if err := p.answer(c, driver); err != nil {
				log.Print(err)
			}
		})
	}
}

func (p *process) answer(c *net.UnixConn, driver string) error {
	if err := c.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	b, file, err := receive(c)
	if err := errors.Join(err, closeFile(file)); err != nil {
		return err
	}
	var r request
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("den-net: request: %w", err)
	}
	a := response{Version: controlVersion, Driver: driver, PID: os.Getpid(), MTU: p.n.MTU, NoHostLoopback: p.n.NoHostLoopback}
	switch {
	case r.Op == opHello:
	case r.Op == opPublish && r.Endpoint != nil:
		a.Ports, err = p.publish(r.Endpoint)
	case r.Op == opWithdraw && r.Endpoint != nil:
		a.Ports, err = p.withdraw(r.Endpoint.ID)
	case r.Op == opNames:
		err = p.readZone()
	case r.Op == opNamespace:
		file = p.side.Namespace()
	case r.Op == opStop:
		defer p.once.Do(func() { close(p.stop) })
	default:
		err = fmt.Errorf("den-net: unknown request %q", r.Op)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return send(c, a, file)
}

// watch returns when nobody needs this den-net any more.
func (p *process) watch(lock *os.File) error {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, unix.SIGTERM, unix.SIGINT)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	rest := time.After(restAfter)
	for {
		select {
		case <-p.stop:
			return nil
		case <-terminated:
			return nil
		case <-rest:
			sys.Rest()
			continue
		case <-tick.C:
		}
		if done, err := p.unneeded(lock); done || err != nil {
			return err
		}
	}
}

// unneeded says that the network is gone, or has had no endpoints for a while and nobody is
// about to give it one: a record is written, under the network's lock, before den-net is asked for.
// Then the rest of the network goes, too.
func (p *process) unneeded(lock *os.File) (bool, error) {
	same, err := sys.SameInode(lock, filepath.Join(p.dir, processLock))
	if err != nil || !same {
		return true, err
	}
	f, err := os.OpenFile(filepath.Join(p.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return true, err
	}
	defer func() { _ = f.Close() }()
	if ok, err := sys.TryFlock(f, unix.LOCK_EX); !ok || err != nil {
		return false, err
	}
	es, err := ReadEndpoints(p.dir)
	if err != nil || len(es) > 0 {
		return false, err
	}
	dir, err := os.Stat(filepath.Join(p.dir, endpointsDir))
	if err != nil || time.Since(dir.ModTime()) < watchEvery {
		return false, err
	}
	if p.down != nil {
		if err := p.down(p.n); err != nil {
			return false, err
		}
	}
	// The lock of the network ends with f, before this process does; who comes in
	// between finds its socket gone, and waits for its lock.
	return true, forget(filepath.Join(p.dir, socketFile))
}
