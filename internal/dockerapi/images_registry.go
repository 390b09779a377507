package dockerapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/oci"
	denregistry "den/internal/registry"
)

// auth finds out whether a registry takes a credential. It stores nothing: clients do.
func (s *Server) auth(w http.ResponseWriter, c *call) error {
	var body registry.AuthConfig
	if c.ContentLength == 0 {
		return invalid("invalid X-Registry-Auth header: invalid JSON: EOF") // docker's words, of what need not be a header
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	cred := credentialOf(body)
	a, err := s.access(func(context.Context, string, string) (denregistry.Credential, error) { return cred, nil })
	if err != nil {
		return err
	}
	host := serverHost(body.ServerAddress)
	if err := a.Registry.Ping(c.Context(), host); err != nil {
		if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
			return &statusError{errdefs.ErrUnauthenticated, "login attempt to " + host + " failed: " + err.Error()}
		}
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

// serverHost is the host of a server address; Docker Hub has several.
func serverHost(address string) string {
	host := strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// inspectDistribution asks a registry what a name stands for there.
func (s *Server) inspectDistribution(w http.ResponseWriter, c *call) error {
	if _, err := oci.ParseReference(c.name); err != nil {
		return invalid("invalid reference format: %v", err)
	}
	a, err := s.withCredential(c, c.name)
	if err != nil {
		return err
	}
	d, raw, err := a.Registry.Manifest(c.Context(), c.name)
	if err != nil {
		return err
	}
	out := registry.DistributionInspect{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	if out.Platforms, err = offered(c, a, d, raw); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// offered are the platforms of an index, or that of a manifest's configuration.
func offered(c *call, a Access, d oci.Descriptor, raw []byte) ([]oci.Platform, error) {
	list := []oci.Platform{}
	if index, err := oci.ParseIndex(raw, d.MediaType); err == nil {
		for _, m := range index.Manifests {
			if m.Platform != nil {
				list = append(list, *m.Platform)
			}
		}
		return list, nil
	}
	m, err := oci.ParseManifest(raw, d.MediaType)
	if err != nil {
		return nil, err
	}
	text, err := a.Registry.SmallBlob(c.Context(), repository(c.name), m.Config, oci.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	var p oci.Platform
	if err := json.Unmarshal(text, &p); err == nil && p.OS != "" {
		list = append(list, p)
	}
	return list, nil
}

func repository(name string) string {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return name
	}
	return ref.Name()
}

// The search of Docker Hub, which alone has the first version of the registry's API.
const (
	hubSearch     = "https://index.docker.io/v1/search"
	searchDefault = 25
	searchMost    = 100
	maxSearchBody = 4 << 20
)

func (s *Server) searchImages(w http.ResponseWriter, c *call) error {
	f, err := c.filters("is-automated", "is-official", "stars")
	if err != nil {
		return err
	}
	limit, err := c.number("limit", searchDefault)
	if err != nil {
		return err
	}
	if limit < 1 || limit > searchMost {
		if limit != 0 {
			return invalid("limit %d is outside the range of [1, %d]", limit, searchMost)
		}
		limit = searchDefault
	}
	official, err := f.boolean("is-official", false)
	if err != nil {
		return err
	}
	stars := 0
	for _, v := range f["stars"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return invalid("invalid filter 'stars=%s'", v)
		}
		stars = max(stars, n)
	}
	term := c.query.Get("term")
	if host, _, found := strings.Cut(term, "/"); found && strings.ContainsAny(host, ".:") && host != "docker.io" && host != "index.docker.io" {
		return unimplemented("search %s: only Docker Hub has a search; ask this registry by its own web page or API", host)
	}
	found, err := search(c, term, limit)
	if err != nil {
		return err
	}
	list := []registry.SearchResult{}
	for _, r := range found.Results {
		if r.StarCount >= stars && (!official || r.IsOfficial) {
			list = append(list, r)
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

func search(c *call, term string, limit int) (*registry.SearchResults, error) {
	body, err := fetch(c, hubSearch+"?"+url.Values{"q": {term}, "n": {strconv.Itoa(limit)}}.Encode())
	if err != nil {
		return nil, unavailable("search Docker Hub: %v", err)
	}
	defer body.Close()
	var found registry.SearchResults
	if err := json.NewDecoder(io.LimitReader(body, maxSearchBody)).Decode(&found); err != nil {
		return nil, unavailable("search Docker Hub: %v", err)
	}
	return &found, nil
}
