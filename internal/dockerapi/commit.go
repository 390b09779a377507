package dockerapi

import (
	"net/http"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"

	"den/internal/engine"
)

func (s *Server) commit(w http.ResponseWriter, c *call) error {
	name, err := repoTag(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	var config *dockerspec.DockerOCIImageConfig
	if c.ContentLength != 0 {
		if err := c.decode(&config); err != nil {
			return err
		}
	}
	var changes []string
	for _, v := range c.query["changes"] {
		changes = append(changes, strings.Split(v, "\n")...)
	}
	from := c.query.Get("container")
	img, err := s.Engine.Commit(c.Context(), from, engine.CommitOptions{
		Name: name, Author: c.query.Get("author"), Message: c.query.Get("comment"), Changes: nonEmpty(changes),
		Pause: c.flagOr("pause", true), Config: config,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CommitResponse{ID: string(img.ConfigDigest)})
}
