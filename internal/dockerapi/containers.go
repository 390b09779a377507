package dockerapi

import (
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"den/internal/engine"
)

func (s *Server) containerRoutes() []route {
	return []route{
		{"POST", "/containers/create", s.create, 0},
		{"GET", "/containers/json", s.list, 0},
		{"POST", "/containers/prune", s.pruneContainers, 0},
		{"GET", "/containers/{name}/json", s.inspect, 0},
		{"POST", "/containers/{name}/start", s.start, 0},
		{"POST", "/containers/{name}/stop", s.stop, 0},
		{"POST", "/containers/{name}/restart", s.restart, 0},
		{"POST", "/containers/{name}/kill", s.kill, 0},
		{"POST", "/containers/{name}/pause", s.pause, 0},
		{"POST", "/containers/{name}/unpause", s.unpause, 0},
		{"POST", "/containers/{name}/rename", s.rename, 0},
		{"POST", "/containers/{name}/update", s.update, 0},
		{"POST", "/containers/{name}/resize", s.resize, 0},
		{"POST", "/containers/{name}/wait", s.wait, 0},
		{"POST", "/containers/{name}/attach", s.attach, 0},
		{"GET", "/containers/{name}/attach/ws", s.attachWebsocket, 0},
		{"GET", "/containers/{name}/logs", s.logs, 0},
		{"GET", "/containers/{name}/top", s.top, 0},
		{"GET", "/containers/{name}/stats", s.stats, 0},
		{"GET", "/containers/{name}/changes", s.changes, 0},
		{"GET", "/containers/{name}/export", s.export, 0},
		{"HEAD", "/containers/{name}/archive", s.statArchive, 0},
		{"GET", "/containers/{name}/archive", s.readArchive, 0},
		{"PUT", "/containers/{name}/archive", s.writeArchive, 0},
		{"GET", "/containers/{name}/checkpoints", noCheckpoints, 0},
		{"POST", "/containers/{name}/checkpoints", noCheckpoints, 0},
		{"DELETE", "/containers/{name}", s.remove, 0},
		{"POST", "/containers/{name}/exec", s.createExec, 0},
		{"POST", "/exec/{name}/start", s.startExec, 0},
		{"POST", "/exec/{name}/resize", s.resizeExec, 0},
		{"GET", "/exec/{name}/json", s.inspectExec, 0},
	}
}

func noCheckpoints(http.ResponseWriter, *call) error {
	return unimplemented("den does not checkpoint containers: commit keeps a container's files")
}

// noContent answers an operation whose success needs no words.
func noContent(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) start(w http.ResponseWriter, c *call) error {
	if c.ContentLength > 7 { // docker's: "{}", "null" and the like are let through
		return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if c.query.Get("checkpoint") != "" {
		return noCheckpoints(w, c)
	}
	return noContent(w, s.Engine.Start(c.Context(), c.name))
}

// stopOptions reads how stop and restart are to go about it.
func (c *call) stopOptions() (engine.StopOptions, error) {
	var o engine.StopOptions
	if c.version >= 42 {
		o.Signal = c.query.Get("signal")
	}
	if c.query.Get("t") != "" {
		n, err := c.number("t", 0)
		if err != nil {
			return o, err
		}
		o.Seconds = &n
	}
	return o, nil
}

func (s *Server) stop(w http.ResponseWriter, c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return noContent(w, s.Engine.Stop(c.Context(), c.name, o))
}

func (s *Server) restart(w http.ResponseWriter, c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return noContent(w, s.Engine.Restart(c.Context(), c.name, o))
}

func (s *Server) kill(w http.ResponseWriter, c *call) error {
	return noContent(w, s.Engine.Kill(c.Context(), c.name, c.query.Get("signal")))
}

func (s *Server) pause(w http.ResponseWriter, c *call) error {
	return noContent(w, s.Engine.Pause(c.Context(), c.name))
}

func (s *Server) unpause(w http.ResponseWriter, c *call) error {
	return noContent(w, s.Engine.Resume(c.Context(), c.name))
}

func (s *Server) rename(w http.ResponseWriter, c *call) error {
	name := c.query.Get("name")
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if err := checkName(name); err != nil {
		return err
	}
	return noContent(w, s.Engine.Rename(c.Context(), c.name, name))
}

func (s *Server) resize(_ http.ResponseWriter, c *call) error {
	rows, cols, err := c.size()
	if err != nil {
		return err
	}
	return s.Engine.Resize(c.Context(), c.name, engine.Size{Rows: rows, Cols: cols})
}

func (s *Server) remove(w http.ResponseWriter, c *call) error {
	return noContent(w, s.Engine.Remove(c.Context(), c.name, engine.RemoveOptions{
		Force: c.flag("force"), Volumes: c.flag("v"), Link: c.flag("link"),
	}))
}

// wait sends its head at once: clients start the container when they have seen it.
func (s *Server) wait(w http.ResponseWriter, c *call) error {
	condition := engine.WaitNotRunning
	if c.version >= 30 {
		switch asked := c.query.Get("condition"); asked {
		case "", string(engine.WaitNotRunning):
		case string(engine.WaitNextExit), string(engine.WaitRemoved):
			condition = engine.WaitCondition(asked)
		default:
			return invalid("invalid condition: %q", asked)
		}
	}
	ended, err := s.Engine.Wait(c.Context(), c.name, condition)
	if err != nil {
		return err
	}
	out, err := c.flushed(w, "application/json")
	if err != nil {
		return err
	}
	var resp container.WaitResponse
	select {
	case <-c.Context().Done():
		return c.Context().Err()
	case r, ok := <-ended:
		resp.StatusCode = int64(r.Code)
		switch {
		case !ok:
			resp.Error = &container.WaitExitError{Message: "nobody saw how the container ended"}
		case r.Err != nil:
			resp.Error = &container.WaitExitError{Message: r.Err.Error()}
		}
	}
	return jsonLines(out).Encode(resp)
}

func (s *Server) update(w http.ResponseWriter, c *call) error {
	var body container.UpdateConfig
	if err := c.decode(&body); err != nil {
		return err
	}
	now, err := s.Engine.Container(c.Context(), c.name)
	if err != nil {
		return err
	}
	req, err := updateRequest(now, &body)
	if err != nil {
		return err
	}
	warnings, err := s.Engine.Update(c.Context(), now.ID, req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, container.UpdateResponse{
		Warnings: append(append([]string{}, leftOut(&body.Resources)...), warnings...),
	})
}

// updateRequest changes what the body sets: what is zero or null stays.
func updateRequest(now *engine.Container, body *container.UpdateConfig) (*engine.UpdateRequest, error) {
	door := doorOf(now)
	h := door.HostConfig
	var req engine.UpdateRequest
	if body.RestartPolicy.Name != "" {
		if err := container.ValidateRestartPolicy(body.RestartPolicy); err != nil {
			return nil, invalid("%v", err)
		}
		if h.AutoRemove && !body.RestartPolicy.IsNone() {
			return nil, invalid("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		h.RestartPolicy = body.RestartPolicy
		req.Restart = &engine.RestartPolicy{Name: string(body.RestartPolicy.Name), Max: body.RestartPolicy.MaximumRetryCount}
		if body.RestartPolicy.IsNone() {
			req.Restart.Name = ""
		}
	}
	replace(&h.CPUShares, body.CPUShares)
	replace(&h.Memory, body.Memory)
	replace(&h.MemorySwap, body.MemorySwap)
	replace(&h.CPUPeriod, body.CPUPeriod)
	replace(&h.CPUQuota, body.CPUQuota)
	replace(&h.NanoCPUs, body.NanoCPUs)
	replace(&h.CpusetCpus, body.CpusetCpus)
	replace(&h.CpusetMems, body.CpusetMems)
	replace(&h.MemoryReservation, body.MemoryReservation)
	replace(&h.BlkioWeight, body.BlkioWeight)
	if body.NanoCPUs != 0 {
		h.CPUPeriod, h.CPUQuota = 0, 0
	} else if body.CPUQuota != 0 {
		h.NanoCPUs = 0
	}
	if body.PidsLimit != nil {
		h.PidsLimit = body.PidsLimit
	}
	if err := refuse(h); err != nil {
		return nil, err
	}
	l := limits(&h.Resources)
	req.Limits = &l
	data, err := json.Marshal(door)
	req.Door = data
	return &req, err
}

// replace sets *to unless value is the zero one.
func replace[T comparable](to *T, value T) {
	var zero T
	if value != zero {
		*to = value
	}
}
