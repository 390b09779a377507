package dockerapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/image"

	"den/internal/engine"
	"den/internal/oci"
)

// imageSummary is a line of GET /images/json. VirtualSize went with 1.44.
type imageSummary struct {
	image.Summary
	VirtualSize *int64 `json:"VirtualSize,omitempty"`
}

func (s *Server) listImages(w http.ResponseWriter, c *call) error {
	f, err := c.filters("before", "dangling", "label", "label!", "reference", "since", "until")
	if err != nil {
		return err
	}
	if name := c.query.Get("filter"); name != "" && c.version < 41 {
		f["reference"] = append(f["reference"], name)
	}
	if c.version >= 54 && c.flag("identity") && !c.flag("manifests") {
		return invalid("conflicting options: identity requires manifests=1")
	}
	list, err := s.imageSummaries(c, f, c.version >= 42 && c.flag("shared-size"))
	if err != nil {
		return err
	}
	if c.version >= 51 {
		users, err := s.imageUsers(c.Context())
		if err != nil {
			return err
		}
		for i := range list {
			list[i].Containers = users[list[i].ID]
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// imageUsers counts the containers of each image.
func (s *Server) imageUsers(ctx context.Context) (map[string]int64, error) {
	all, err := s.Engine.Containers(ctx)
	if err != nil {
		return nil, err
	}
	return countUsers(all), nil
}

func countUsers(all []*engine.Container) map[string]int64 {
	users := map[string]int64{}
	for _, c := range all {
		users[string(c.ConfigDigest)]++
	}
	return users
}

// imageSummaries lists images as docker does; shared counts what they share.
func (s *Server) imageSummaries(c *call, f filters, shared bool) ([]imageSummary, error) {
	images, err := s.images()
	if err != nil {
		return nil, err
	}
	found, err := images.List(c.Context(), f)
	if err != nil {
		return nil, imageError(err, strings.Join(append(f["before"], f["since"]...), ", "))
	}
	var sharing map[oci.Digest]int64
	if shared {
		u, err := images.Usage(c.Context())
		if err != nil {
			return nil, err
		}
		sharing = u.SharedBytes
	}
	list := make([]imageSummary, 0, len(found))
	for _, i := range found {
		x := imageSummary{Summary: image.Summary{
			Containers: -1, Created: i.Created.Unix(), ID: string(i.ConfigDigest), Labels: i.Labels,
			RepoDigests: notNil(i.Digests), RepoTags: notNil(i.Tags), SharedSize: -1, Size: i.SizeBytes,
		}}
		if i.Created.IsZero() {
			x.Created = 0
		}
		if shared {
			x.SharedSize = sharing[i.ConfigDigest]
		}
		if c.version < 44 {
			x.VirtualSize = &x.Size
		}
		if c.version < 43 && i.Dangling() {
			x.RepoTags, x.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		list = append(list, x)
	}
	return list, nil
}
