package dockerapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/containerd/platforms"

	denimage "den/internal/image"
	"den/internal/oci"
)

// imageInspect is GET /images/{name}/json. The pointers are fields that newer versions have not.
type imageInspect struct {
	*denimage.Inspection
	// Config hides Inspection's.
	Config json.RawMessage
	// Author and Comment hide Inspection's, which leave out what is empty.
	Author          *string          `json:",omitempty"`
	Comment         *string          `json:",omitempty"`
	Parent          *string          `json:",omitempty"`
	DockerVersion   *string          `json:",omitempty"`
	Container       *string          `json:",omitempty"`
	ContainerConfig *json.RawMessage `json:",omitempty"`
	Descriptor      *oci.Descriptor  `json:",omitempty"`
	VirtualSize     *int64           `json:",omitempty"`
	GraphDriver     *graphDriver     `json:",omitempty"`
}

type graphDriver struct {
	Data map[string]string
	Name string
}

func (s *Server) inspectImage(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	p, err := c.platform(49)
	if err != nil {
		return err
	}
	if p != nil && c.flag("manifests") {
		return invalid("conflicting options: manifests and platform options cannot both be set")
	}
	found, err := images.Inspect(c.Context(), c.name, p)
	if err != nil {
		return imageError(err, c.name)
	}
	x, err := s.inspection(c.version, found)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, x)
}

// inspection is found in the words of a version.
func (s *Server) inspection(v version, found *denimage.Inspection) (*imageInspect, error) {
	empty := ""
	x := &imageInspect{Inspection: found, Descriptor: found.Descriptor}
	if found.Author != "" {
		x.Author = &found.Author
	}
	if found.Comment != "" {
		x.Comment = &found.Comment
	}
	config, err := json.Marshal(found.Config)
	if err != nil {
		return nil, err
	}
	if v < 50 {
		if config, err = mergeConfig(found); err != nil {
			return nil, err
		}
	}
	x.Config = config
	if v < 52 {
		x.Author, x.Comment = &found.Author, &found.Comment
		x.GraphDriver = &graphDriver{Name: s.StorageDriver}
		x.Parent, x.DockerVersion = &empty, &empty
	}
	if v < 48 {
		x.Descriptor = nil
	}
	if v < 44 {
		x.VirtualSize = &found.Size
	}
	if v < 45 {
		x.Container, x.ContainerConfig = &empty, (*json.RawMessage)(&x.Config)
	}
	return x, nil
}

// containerFields are those of a container's configuration that images had before 1.50: always
// empty.
type containerFields struct {
	Hostname, Domainname, User, Image, WorkingDir string
	AttachStdin, AttachStdout, AttachStderr       bool
	Tty, OpenStdin, StdinOnce                     bool
	Env, Cmd, Entrypoint, OnBuild                 []string
	Volumes                                       map[string]struct{}
	Labels                                        map[string]string
}

// mergeConfig is an image's configuration with a container's empty fields.
func mergeConfig(found *denimage.Inspection) (json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	for _, v := range []any{containerFields{}, found.Config} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, err
		}
	}
	return json.Marshal(all)
}

// platform is the query's platform, JSON or os/arch; nil without one, and for versions before since, which
// do not know it.
func (c *call) platform(since version) (*oci.Platform, error) {
	if c.version < since {
		return nil, nil
	}
	return parsePlatform(c.query.Get("platform"))
}

func parsePlatform(s string) (*oci.Platform, error) {
	if s == "" {
		return nil, nil
	}
	if strings.HasPrefix(s, "{") {
		var p oci.Platform
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return nil, invalid("invalid platform: %v", err)
		}
		if p.OS == "" || p.Architecture == "" {
			return nil, invalid("invalid platform %q: both os and architecture must be given", s)
		}
		p = platforms.Normalize(p)
		return &p, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return nil, invalid("invalid platform: %v", err)
	}
	return &p, nil
}

func asError[T error](err error, to *T) bool { return errors.As(err, to) }
