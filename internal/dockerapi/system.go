package dockerapi

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"
)

func (s *Server) systemRoutes() []route {
	routes := []route{
		{"GET", "/version", s.version, 0},
		{"GET", "/info", s.info, 0},
		{"GET", "/plugins", s.noPlugins, 0},
	}
	return slices.Concat(s.pingRoutes(), routes, s.swarmRoutes())
}

func (s *Server) pingRoutes() []route {
	return []route{
		{"GET", "/_ping", s.ping, 0},
		{"HEAD", "/_ping", s.ping, 0},
	}
}

// NewPing returns a server of den's version that knows /_ping only, which needs no engine:
// clients learn what they talk to while the engine is being opened.
func NewPing(version string) *Server {
	s := &Server{Options: Options{Version: version, Log: slog.New(slog.DiscardHandler)}}
	s.table = s.pingRoutes()
	return s
}

// Knows says that s has an answer to r that is no error of the path or the version.
func (s *Server) Knows(r *http.Request) bool {
	_, err := s.find(&call{Request: r, server: s})
	return err == nil
}

// ping is what every client calls first, to learn the version. No part of it may wait.
func (s *Server) ping(w http.ResponseWriter, c *call) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	// 1 is the classic builder, by POST /build.
	h.Set("Builder-Version", "1")
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := io.WriteString(w, "OK")
	return err
}

func (s *Server) version(w http.ResponseWriter, _ *call) error {
	kernel := kernelRelease()
	v := system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "den"},
		Version:       s.Version,
		APIVersion:    newest.String(),
		MinAPIVersion: oldest.String(),
		Os:            runtime.GOOS,
		Arch:          runtime.GOARCH,
		GitCommit:     s.Commit,
		GoVersion:     runtime.Version(),
		KernelVersion: kernel,
		BuildTime:     s.BuildTime,
	}
	v.Components = []system.ComponentVersion{{
		// Clients look for a component of this name.
		Name: "Engine", Version: v.Version,
		Details: map[string]string{
			"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch,
			"GitCommit": v.GitCommit, "GoVersion": v.GoVersion, "KernelVersion": kernel,
			"BuildTime": v.BuildTime, "Experimental": "false",
		},
	}}
	return writeJSON(w, http.StatusOK, v)
}

// kernelRelease is uname's; empty if it does not say.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (s *Server) info(w http.ResponseWriter, c *call) error {
	if s.Info == nil {
		return unavailable("this server does not know what it stands on")
	}
	info, err := s.Info(c.Context())
	if err != nil {
		return fmt.Errorf("info: %w", err)
	}
	all, err := s.Engine.Containers(c.Context())
	if err != nil {
		return fmt.Errorf("info: %w", err)
	}
	for _, one := range all {
		info.Containers++
		switch {
		case one.State.Paused:
			info.ContainersPaused++
		case one.State.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	info.SystemTime = time.Now().Format(time.RFC3339Nano)
	return writeJSON(w, http.StatusOK, info)
}

func (s *Server) noPlugins(w http.ResponseWriter, _ *call) error {
	return writeJSON(w, http.StatusOK, []struct{}{})
}

// notManager is docker's sentence, which clients look for.
const notManager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

// swarmRoutes refuse what belongs to Swarm and to plugins with docker's sentences.
func (s *Server) swarmRoutes() []route {
	needsManager := func(http.ResponseWriter, *call) error { return unavailable("%s", notManager) }
	noSwarm := func(http.ResponseWriter, *call) error {
		return unimplemented("den is not a node of a swarm and cannot become one: use it as a single engine, or Kubernetes for more than one machine")
	}
	noPlugin := func(_ http.ResponseWriter, c *call) error { return notFound("plugin %q not found", c.name) }
	noInstall := func(http.ResponseWriter, *call) error {
		return unimplemented("den has no plugins: volumes and networks are den's own")
	}
	routes := []route{
		{"POST", "/swarm/init", noSwarm, 0},
		{"POST", "/swarm/join", noSwarm, 0},
		{"POST", "/swarm/leave", func(http.ResponseWriter, *call) error { return unavailable("This node is not part of a swarm") }, 0},
		{"POST", "/swarm/update", needsManager, 0},
		{"POST", "/swarm/unlock", needsManager, 0},
		{"GET", "/swarm", needsManager, 0},
		{"GET", "/swarm/unlockkey", needsManager, 0},
		{"POST", "/plugins/pull", noInstall, 0},
		{"POST", "/plugins/create", noInstall, 0},
		{"GET", "/plugins/privileges", noInstall, 0},
		{"GET", "/plugins/{name}/json", noPlugin, 0},
		{"DELETE", "/plugins/{name}", noPlugin, 0},
	}
	for _, verb := range strings.Fields("enable disable upgrade push set") {
		routes = append(routes, route{"POST", "/plugins/{name}/" + verb, noPlugin, 0})
	}
	for _, noun := range strings.Fields("nodes services tasks secrets configs") {
		routes = append(routes,
			route{"GET", "/" + noun, needsManager, 0},
			route{"POST", "/" + noun + "/create", needsManager, 0},
			route{"GET", "/" + noun + "/{name}/logs", needsManager, 0},
			route{"GET", "/" + noun + "/{name}", needsManager, 0},
			route{"POST", "/" + noun + "/{name}/update", needsManager, 0},
			route{"DELETE", "/" + noun + "/{name}", needsManager, 0})
	}
	return routes
}
