package dockerapi

import (
	"net/http"
	"time"

	"github.com/moby/moby/api/types/volume"

	"den/internal/engine"
)

func (s *Server) volumeRoutes() []route {
	return []route{
		{"GET", "/volumes", s.listVolumes, 0},
		{"POST", "/volumes/create", s.createVolume, 0},
		{"POST", "/volumes/prune", s.pruneVolumes, 25},
		{"GET", "/volumes/{name}", s.inspectVolume, 0},
		{"PUT", "/volumes/{name}", noClusterVolume, 42},
		{"DELETE", "/volumes/{name}", s.removeVolume, 0},
	}
}

func noClusterVolume(http.ResponseWriter, *call) error {
	return unavailable("volume update only valid for cluster volumes, but swarm is unavailable")
}

// volumeOf is what inspect says of a volume.
func volumeOf(v *engine.Volume) volume.Volume {
	out := volume.Volume{
		Name: v.Name, Driver: volumeDriver, Mountpoint: v.Path, Scope: "local", Labels: v.Labels, Options: v.Options,
	}
	if !v.Created.IsZero() {
		out.CreatedAt = v.Created.Format(time.RFC3339)
	}
	return out
}

func (s *Server) listVolumes(w http.ResponseWriter, c *call) error {
	f, err := c.filters("dangling", "driver", "label", "label!", "name")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	all, err := s.Engine.Volumes(c.Context())
	if err != nil {
		return err
	}
	var users map[string][]string
	if f.has("dangling") {
		if users, err = s.Engine.VolumeUsers(c.Context()); err != nil {
			return err
		}
	}
	out := volume.ListResponse{Volumes: []volume.Volume{}}
	for _, v := range all {
		if f.has("dangling") && dangling != (len(users[v.Name]) == 0) {
			continue
		}
		if f.exact("driver", volumeDriver) && f.labels("label", v.Labels) && !anyLabel(f["label!"], v.Labels) && f.matches("name", v.Name) {
			out.Volumes = append(out.Volumes, volumeOf(v))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) createVolume(w http.ResponseWriter, c *call) error {
	var body volume.CreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	switch {
	case body.ClusterVolumeSpec != nil:
		return unavailable("volume create: cluster volumes need a swarm")
	case body.Driver != "" && body.Driver != volumeDriver && body.Driver != "default":
		return noVolumeDriver(body.Driver)
	}
	if body.Name != "" {
		if err := checkVolumeName(body.Name); err != nil {
			return err
		}
	}
	v, err := s.Engine.CreateVolume(c.Context(), engine.VolumeRequest{Name: body.Name, Labels: body.Labels, Options: body.DriverOpts})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, volumeOf(v))
}

func (s *Server) inspectVolume(w http.ResponseWriter, c *call) error {
	v, err := s.Engine.Volume(c.Context(), c.name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, volumeOf(v))
}

// removeVolume takes force for "it may be missing".
func (s *Server) removeVolume(w http.ResponseWriter, c *call) error {
	err := s.Engine.RemoveVolume(c.Context(), c.name)
	if c.flag("force") && statusOf(err) == http.StatusNotFound {
		err = nil
	}
	return noContent(w, err)
}
