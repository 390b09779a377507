package dockerapi

import (
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"den/internal/engine"
	"den/internal/network"
)

// pruning is what the filters of a prune say: kept says that an object stays.
func pruning(f filters) (kept func(created time.Time, labels map[string]string) bool, err error) {
	var until time.Time
	if f.has("until") {
		if len(f["until"]) > 1 {
			return nil, invalid("more than one until filter specified")
		}
		if until, err = timestamp(f["until"][0], time.Now()); err != nil {
			return nil, err
		}
	}
	return func(created time.Time, labels map[string]string) bool {
		return !until.IsZero() && !created.Before(until) || !f.labels("label", labels) ||
			f.has("label!") && anyLabel(f["label!"], labels)
	}, nil
}

// anyLabel says that labels has one of those named.
func anyLabel(want []string, labels map[string]string) bool {
	for _, w := range want {
		if (filters{"l": {w}}).labels("l", labels) {
			return true
		}
	}
	return false
}

func (s *Server) pruneContainers(w http.ResponseWriter, c *call) error {
	f, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	kept, err := pruning(f)
	if err != nil {
		return err
	}
	done, err := s.Engine.PruneContainers(c.Context(), func(c *engine.Container) bool { return kept(c.Created, c.Labels) })
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, container.PruneReport{ContainersDeleted: done.Names, SpaceReclaimed: uint64(max(0, done.Bytes))})
}

func (s *Server) pruneVolumes(w http.ResponseWriter, c *call) error {
	f, err := c.filters("label", "label!", "all")
	if err != nil {
		return err
	}
	kept, err := pruning(f)
	if err != nil {
		return err
	}
	// Up to 1.41 named volumes went, too. What options make of a volume is not den's alone to remove: it stays.
	all, err := f.boolean("all", c.version < 42)
	if err != nil {
		return err
	}
	done, err := s.Engine.PruneVolumes(c.Context(), func(v *engine.Volume) bool {
		return len(v.Options) > 0 || !all && !v.Anonymous || kept(v.Created, v.Labels)
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, volume.PruneReport{VolumesDeleted: notNil(done.Names), SpaceReclaimed: uint64(max(0, done.Bytes))})
}

func (s *Server) pruneNetworks(w http.ResponseWriter, c *call) error {
	f, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	kept, err := pruning(f)
	if err != nil {
		return err
	}
	done, err := s.Engine.PruneNetworks(c.Context(), func(n *network.Network) bool { return kept(n.Created, n.Labels) })
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apinet.PruneReport{NetworksDeleted: done.Names})
}
