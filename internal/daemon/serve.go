package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"den/internal/dockerapi"
	"den/internal/socket"
	"den/internal/sys"
)

// ServeOptions say how den serves.
type ServeOptions struct {
	// Listeners are open already; Serve closes them. TCP ones speak TLS if TLS is set.
	Listeners []*socket.Listener
	TLS       *tls.Config
	// Refusing listeners accept connections and answer every request with a sentence: TCP
	// health checks pass there.
	Refusing []*socket.Listener
	// LiveRestore leaves containers alone that can live without this process.
	LiveRestore bool
	// ExitWith, unless nil, is closed when the process that den serves is gone.
	ExitWith <-chan struct{}
	// IdleExit is how long nothing may have been asked and nothing run, until den ends;
	// 0 is for ever.
	IdleExit time.Duration
	// ShutdownTimeout bounds what containers may take to end; 0 is their own.
	ShutdownTimeout time.Duration
	// Engine are the settings of networks and containers.
	Engine EngineOptions
}

// EngineOptions are what dockerd's flags say about containers and networks.
type EngineOptions struct {
	// These are dockerd's: BIP, FixedCIDR, BIP6, FixedCIDR6, Pools ("base=...,size=..."), MTU, DNS, DNSSearch, DNSOptions, IPv6,
	// NoICC (--icc=false), PublishIP (--ip), HostGateways, NetworkOptions ("bridge=KEY=VALUE").
	BIP, FixedCIDR, BIP6, FixedCIDR6 string
	Pools                            []string
	MTU                              int
	DNS, DNSSearch, DNSOptions       []string
	IPv6, NoICC                      bool
	PublishIP                        string
	HostGateways, NetworkOptions     []string
	// NoHostLoopback keeps containers from the loopback addresses of den's own container.
	NoHostLoopback bool
	// Init puts a reaper into every container, Ulimits ("name=soft:hard") bound them unless they
	// say otherwise.
	Init    bool
	Ulimits []string
	// LogDriver and LogOptions are those of containers that name none.
	LogDriver    string
	LogOptions   []string
	CgroupParent string
	// Labels of the engine, for GET /info.
	Labels []string
	// Commit and BuildTime of den, for GET /version.
	Commit, BuildTime string
}

// restAfter is for how long nobody has to have asked, and no answer to have ended, until den gives
// back what it does not need to wait.
const restAfter = 2 * time.Second

// drain is how long answers that are on their way may take once containers have ended.
const drain = 3 * time.Second

// Serve answers the Docker API until ctx ends, ExitWith closes or den is idle. Requests
// that come before the store is open wait, but for /_ping. When it returns nothing is left: containers have
// ended, but those that LiveRestore keeps.
func Serve(ctx context.Context, o Options, s ServeOptions) error {
	o = withDefaults(o)
	g := newGate(o.Version, sys.Rest)
	defer g.end()
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	servers := newServers(base, o, s, g)
	servers.start()
	api, err := openAPI(ctx, base, o, s)
	if err != nil {
		g.open(unavailable(err))
		servers.end(cancel)
		return err
	}
	g.open(api.handler)
	o.Debug("serving")
	why := s.wait(ctx, g, api, servers.failed)
	// Who still waits for a container learns how it ended.
	servers.stopAccepting()
	err = errors.Join(why, api.shutdown(context.WithoutCancel(ctx), s))
	servers.end(cancel)
	return errors.Join(err, api.close())
}

// wait returns when it is time to end: with an error only if den cannot go on.
func (s ServeOptions) wait(ctx context.Context, g *gate, a *api, failed <-chan error) error {
	var tick <-chan time.Time
	if s.IdleExit > 0 {
		t := time.NewTicker(max(s.IdleExit/10, 10*time.Millisecond))
		defer t.Stop()
		tick = t.C
	}
	quiet := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ExitWith:
			return nil
		case err := <-failed:
			return err
		case now := <-tick:
			if last := g.lastUsed(); last.After(quiet) {
				quiet = last
			}
			if a.running(ctx) {
				quiet = now
			}
			if now.Sub(quiet) >= s.IdleExit {
				return nil
			}
		}
	}
}

// A gate lets requests wait until there is somebody to answer them, but for those that need
// nobody, and knows when the last one was.
type gate struct {
	ping    *dockerapi.Server
	ready   chan struct{}
	handler http.Handler // set before ready closes
	rest    *time.Timer

	mu   sync.Mutex
	busy int
	last time.Time
}

// newGate calls rest each time that no request has come or ended for restAfter.
func newGate(version string, rest func()) *gate {
	return &gate{
		ping: dockerapi.NewPing(version), ready: make(chan struct{}), last: time.Now(), rest: time.AfterFunc(restAfter, rest),
	}
}

func (g *gate) open(h http.Handler) {
	g.handler = h
	close(g.ready)
	g.rest.Reset(restAfter)
}

// end calls rest no more.
func (g *gate) end() { g.rest.Stop() }

// ServeHTTP waits, and answers.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.count(1)
	defer g.count(-1)
	select {
	case <-g.ready:
		g.handler.ServeHTTP(w, r)
		return
	default:
	}
	if g.ping.Knows(r) {
		g.ping.ServeHTTP(w, r)
		return
	}
	select {
	case <-g.ready:
		g.handler.ServeHTTP(w, r)
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
}

func (g *gate) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy += n
	g.last = time.Now()
	g.rest.Reset(restAfter)
}

// lastUsed is now while somebody is answered.
func (g *gate) lastUsed() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy > 0 {
		return time.Now()
	}
	return g.last
}

// servers are the HTTP servers of all listeners.
type servers struct {
	listeners []served
	failed    chan error
	done      sync.WaitGroup
}

type served struct {
	*socket.Listener
	serve  net.Listener
	server *http.Server
}

func newServers(base context.Context, o Options, s ServeOptions, g *gate) *servers {
	all := &servers{failed: make(chan error, len(s.Listeners)+len(s.Refusing))}
	quiet := log.New(debugWriter(o.Debug), "", 0)
	add := func(l *socket.Listener, h http.Handler, t *tls.Config, instead string) {
		at := served{Listener: l, serve: l.Listener, server: &http.Server{
			Handler: h, ReadHeaderTimeout: headTimeout, MaxHeaderBytes: headBytes, ErrorLog: quiet,
			BaseContext: func(net.Listener) context.Context { return base },
		}}
		if t != nil {
			at.serve = tls.NewListener(l.Listener, t)
		} else {
			at.serve = socket.Plain(l.Listener, func(remote string) {
				o.Notice(fmt.Sprintf("client %s speaks TLS to %s, which is plain HTTP: %s", remote, l.Address, instead))
			})
		}
		all.listeners = append(all.listeners, at)
	}
	for _, l := range s.Listeners {
		if l.Address.Network == socket.Unix {
			add(l, g, nil, plainOnly)
			continue
		}
		add(l, g, s.TLS, plainOnly)
	}
	for _, l := range s.Refusing {
		add(l, http.HandlerFunc(refuse), nil, "set DOCKER_HOST=tcp://docker:"+socket.TLSPort+" there")
	}
	return all
}

// plainOnly is what a client does that speaks TLS to a den that speaks none.
const plainOnly = "unset DOCKER_TLS_VERIFY there, or serve TLS (DOCKER_TLS_CERTDIR, --tlsverify)"

// A client has so long for a request's head, which may have so many bytes; the first is docker's.
const (
	headTimeout = 5 * time.Minute
	headBytes   = 64 << 10
)

// debugWriter takes what net/http has to say about connections.
type debugWriter func(string)

func (w debugWriter) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}

func (s *servers) start() {
	for _, l := range s.listeners {
		s.done.Go(func() {
			if err := l.server.Serve(l.serve); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				s.failed <- fmt.Errorf("serve %s: %w", l.Address, err)
			}
		})
	}
}

// stopAccepting closes the sockets; what is being answered goes on.
func (s *servers) stopAccepting() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// end cuts what is still being answered, once cancel has asked it to end.
func (s *servers) end(cancel func()) {
	s.stopAccepting()
	cancel()
	ctx, stop := context.WithTimeout(context.Background(), drain)
	defer stop()
	for _, l := range s.listeners {
		if l.server.Shutdown(ctx) != nil {
			l.server.Close()
		}
	}
	s.done.Wait()
}
