package dockerapi

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/image"

	"den/internal/build"
	"den/internal/engine"
	denimage "den/internal/image"
	"den/internal/oci"
	"den/internal/registry"
)

// Access is what a request may use: den's images and registries with that request's
// credentials.
type Access struct {
	Images   *denimage.Images
	Registry *registry.Client
	Builder  *build.Builder
}

func (s *Server) imageRoutes() []route {
	return []route{
		{"GET", "/images/json", s.listImages, 0},
		{"GET", "/images/search", s.searchImages, 0},
		{"GET", "/images/get", s.saveImages, 0},
		{"GET", "/images/{name}/get", s.saveImages, 0},
		{"GET", "/images/{name}/json", s.inspectImage, 0},
		{"GET", "/images/{name}/history", s.imageHistory, 0},
		{"GET", "/images/{name}/attestations", s.imageAttestations, 55},
		{"POST", "/images/create", s.createImage, 0},
		{"POST", "/images/load", s.loadImages, 0},
		{"POST", "/images/prune", s.pruneImages, 25},
		{"POST", "/images/{name}/push", s.pushImage, 0},
		{"POST", "/images/{name}/tag", s.tagImage, 0},
		{"DELETE", "/images/{name}", s.removeImage, 0},
		{"GET", "/distribution/{name}/json", s.inspectDistribution, 30},
		{"POST", "/auth", s.auth, 0},
		{"POST", "/commit", s.commit, 0},
		{"GET", "/system/df", s.diskUsage, 0},
		{"POST", "/build", s.build, 0},
		{"POST", "/build/prune", s.pruneBuild, 31},
		{"POST", "/build/cancel", s.cancelBuild, 0},
	}
}

// images are den's with its own credentials.
func (s *Server) images() (*denimage.Images, error) {
	a, err := s.access(nil)
	return a.Images, err
}

// access is what a request with these credentials uses; nil is den's own.
func (s *Server) access(f registry.CredentialFunc) (Access, error) {
	if s.Access == nil {
		return Access{}, unavailable("this server has no images")
	}
	return s.Access(f), nil
}

// emit tells who listens to events what became of an image.
func (s *Server) emit(action, id string, attributes map[string]string) {
	if attributes == nil {
		attributes = map[string]string{"name": id}
	}
	s.Engine.Emit(engine.Event{Type: "image", Action: action, ID: id, Attributes: attributes})
}

// notNil is a list that is not null in JSON.
func notNil(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

// imageError is an error about an image that is not here in docker's words.
func imageError(err error, name string) error {
	var platform *denimage.PlatformError
	if asError(err, &platform) && name != "" {
		return notFound("image with reference %s was found but does not provide the specified platform (%s)", name, platforms.Format(platform.Want))
	}
	if errdefs.IsNotFound(err) && name != "" {
		return notFound("No such image: %s", withTag(name))
	}
	return err
}

// withTag is a name as docker's errors show it: with the tag that it means.
func withTag(name string) string {
	ref, err := oci.ParseReference(name)
	if err != nil || isID(name) {
		return name
	}
	return ref.Familiar()
}

// isID says that a name is a digest, or looks like the beginning of one.
func isID(name string) bool {
	return strings.HasPrefix(name, "sha256:")
}

func (s *Server) imageHistory(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	p, err := c.platform(48)
	if err != nil {
		return err
	}
	rows, err := images.History(c.Context(), c.name, p)
	if err != nil {
		return imageError(err, c.name)
	}
	if rows == nil {
		rows = []denimage.HistoryRow{}
	}
	return writeJSON(w, http.StatusOK, rows)
}

// imageAttestations lists nothing for an image that is here: den keeps of an image what runs, and not what
// others state about it.
func (s *Server) imageAttestations(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	if len(c.query["platform"]) > 1 {
		return invalid("only one platform value is currently supported")
	}
	p, err := c.platform(0)
	if err != nil {
		return err
	}
	if _, err := images.Inspect(c.Context(), c.name, p); err != nil {
		return imageError(err, c.name)
	}
	return writeJSON(w, http.StatusOK, []image.AttestationStatement{})
}

func (s *Server) tagImage(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	name, err := repoTag(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	if name == "" {
		return invalid("invalid reference format: repo is empty")
	}
	if err := images.Tag(c.Context(), c.name, name); err != nil {
		return imageError(err, c.name)
	}
	s.emit("tag", c.name, map[string]string{"name": name})
	w.WriteHeader(http.StatusCreated)
	return nil
}

// repoTag joins a repository and a tag, or a digest, as queries give them.
func repoTag(repo, tag string) (string, error) {
	if repo == "" {
		return "", nil
	}
	name := repo
	if tag != "" {
		if strings.Contains(tag, ":") {
			name += "@" + tag
		} else if ref, err := oci.ParseReference(repo); err == nil && ref.Digest == "" && hasTag(repo) {
			name = ref.Name() + ":" + tag
		} else {
			name += ":" + tag
		}
	}
	if _, err := oci.ParseReference(name); err != nil {
		return "", invalid("invalid reference format: %v", err)
	}
	return name, nil
}

// hasTag says that a name has a tag: a colon that is not a port's.
func hasTag(name string) bool {
	return strings.LastIndexByte(name, ':') > strings.LastIndexByte(name, '/')
}

func (s *Server) removeImage(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	removed, err := images.Remove(c.Context(), c.name, denimage.RemoveOptions{Force: c.flag("force")})
	if err != nil {
		return removalError(err, c.name)
	}
	s.emitRemoved(removed)
	return writeJSON(w, http.StatusOK, removed)
}

// removalError says with docker's sentences why an image stays.
func removalError(err error, name string) error {
	var used *denimage.UsedError
	if !asError(err, &used) {
		return imageError(err, name)
	}
	id := short(used.ConfigDigest)
	if len(used.Containers) == 0 {
		return conflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", id)
	}
	if used.ByID {
		return conflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", id, cmp.Or(used.Containers[0], "?"))
	}
	return conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", name, used.Containers[0], id)
}

// short is the part of a digest that docker shows.
func short(d oci.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

func (s *Server) emitRemoved(removed []denimage.Removed) {
	for _, r := range removed {
		if r.Untagged != "" {
			s.emit("untag", r.Untagged, nil)
		} else {
			s.emit("delete", string(r.Deleted), nil)
		}
	}
}

func (s *Server) pruneImages(w http.ResponseWriter, c *call) error {
	f, err := c.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", true)
	if err != nil {
		return err
	}
	delete(f, "dangling")
	images, err := s.images()
	if err != nil {
		return err
	}
	removed, bytes, err := images.Prune(c.Context(), denimage.PruneOptions{All: !dangling, Filters: f})
	if err != nil {
		return err
	}
	s.emitRemoved(removed)
	var out struct {
		ImagesDeleted  []denimage.Removed
		SpaceReclaimed int64
	}
	out.ImagesDeleted, out.SpaceReclaimed = removed, bytes
	return writeJSON(w, http.StatusOK, out)
}

// withCredential is a request's access with the credential of its X-Registry-Auth header for
// the registry of name.
func (s *Server) withCredential(c *call, name string) (Access, error) {
	cred, ok := headerCredential(c.Header.Get("X-Registry-Auth"))
	if !ok {
		return s.access(nil)
	}
	host := registryHost(name)
	own, err := s.access(nil)
	if err != nil {
		return own, err
	}
	return s.access(func(ctx context.Context, at, repository string) (registry.Credential, error) {
		if at == host {
			return cred, nil
		}
		return own.Registry.Credential(ctx, at, repository)
	})
}

// registryHost is the registry of a name, as credentials know it.
func registryHost(name string) string {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return ""
	}
	return ref.Domain
}
