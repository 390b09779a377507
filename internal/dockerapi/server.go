// Package dockerapi answers the Docker Engine API: it translates between docker's
// JSON and streams and den's engine, and decides nothing.
//
// Every API version from 1.24 to the newest that github.com/moby/moby/api documents
// is answered in that version's words, with the version in the path or without.
// Requests are hostile: bodies, filters and headers are bounded, what den does not
// know is ignored as docker ignores it, and what has the wrong type is answered
// with status 400. Which operation is the same as docker's and which differs is
// written in docs/compatibility.md.
package dockerapi

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"

	"den/internal/registry"
	"den/internal/store"
)

// Options are what a Server stands on.
type Options struct {
	// Engine has the containers, volumes and networks.
	Engine Engine
	// Access gives images and registries with a request's credentials; nil are den's own.
	Access func(registry.CredentialFunc) Access
	// Store has the build cache.
	Store *store.Store
	// StorageDriver is the snapshot driver's name.
	StorageDriver string
	// DefaultLog is the log of containers that name no driver, whose options hold also for who
	// names that driver; CheckLog has passed it. The zero one is json-file.
	DefaultLog container.LogConfig
	// Info is what GET /info says, but for what Server fills in: the counts of
	// containers and the time.
	Info func(ctx context.Context) (system.Info, error)
	// ImageDigest gives the digest of the configuration of an image that is there, by name
	// or id; nil knows none. The filter "ancestor" asks it.
	ImageDigest func(ctx context.Context, name string) (string, error)
	// Version is den's, Commit and BuildTime where it comes from.
	Version, Commit, BuildTime string
	// SocketPath is the unix socket that this server listens on; empty without one.
	// A container that binds it gets this very socket.
	SocketPath string
	// WriteTimeout is how long one write to a client may take before the client is
	// given up; 0 is an hour. A pager that waits for its reader is such a client.
	WriteTimeout time.Duration
	// Log takes what the server has to say that no client asked for; nil is nowhere.
	Log *slog.Logger
}

// Server answers the Docker Engine API. It is safe for concurrent use.
type Server struct {
	Options
	table []route
}

// New returns a server.
func New(o Options) *Server {
	if o.WriteTimeout == 0 {
		o.WriteTimeout = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Options: o}
	s.table = s.routes()
	return s
}

// routes are all that the server answers. Each area has a file and a list of its own.
func (s *Server) routes() []route {
	var all []route
	for _, area := range [][]route{
		s.systemRoutes(),
		s.containerRoutes(),
		s.volumeRoutes(),
		s.networkRoutes(),
		s.eventRoutes(),
		s.imageRoutes(),
	} {
		all = append(all, area...)
	}
	return all
}

// HTTP returns an http.Server for s, whose limits are those of this package: a
// client has five minutes (docker's) for the head of a request, and 64 KiB.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "den/"+s.Version+" ("+runtime.GOOS+")")
	h.Set("Api-Version", newest.String())
	h.Set("Ostype", runtime.GOOS)
	h.Set("Docker-Experimental", "false")
	sent := &sentHeader{ResponseWriter: w}
	defer s.recovered(sent, r)
	c := &call{Request: r, server: s}
	handle, err := s.find(c)
	if err == nil {
		err = handle(sent, c)
	}
	if err != nil {
		s.fail(sent, c, err)
	}
}

// recovered answers a request whose handler panicked: one client's request must not
// end the others' containers.
func (s *Server) recovered(w *sentHeader, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	buf := make([]byte, 16<<10)
	s.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p,
		"stack", string(buf[:runtime.Stack(buf, false)]))
	if w.sent {
		panic(http.ErrAbortHandler) // the client must not take what it got for all
	}
	writeError(w, http.StatusInternalServerError, "den failed while it answered this request; its log says more")
}

// sentHeader knows whether an answer has begun.
type sentHeader struct {
	http.ResponseWriter
	sent bool
}

func (w *sentHeader) WriteHeader(status int) {
	w.sent = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *sentHeader) Write(p []byte) (int, error) {
	w.sent = true
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *sentHeader) Unwrap() http.ResponseWriter { return w.ResponseWriter }
