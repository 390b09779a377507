package dockerapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	denimage "den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
	denregistry "den/internal/registry"
)

// headerCredential reads X-Registry-Auth: JSON in base64, in either alphabet, padded or not. What cannot
// be read, or says nothing, is no credential, as dockerd has it.
func headerCredential(header string) (denregistry.Credential, bool) {
	if header == "" || len(header) > maxAuthHeader {
		return denregistry.Credential{}, false
	}
	var auth registry.AuthConfig
	if err := json.Unmarshal(unbase64(header), &auth); err != nil {
		return denregistry.Credential{}, false
	}
	cred := credentialOf(auth)
	return cred, cred != denregistry.Credential{}
}

const maxAuthHeader = 64 << 10

// unbase64 decodes either alphabet of base64, padded or not.
func unbase64(s string) []byte {
	s = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(s), "=")
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}

func credentialOf(a registry.AuthConfig) denregistry.Credential {
	c := denregistry.Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" && c.Username == "" && c.Password == "" {
		c.Username, c.Password, _ = strings.Cut(strings.TrimRight(string(unbase64(a.Auth)), "\x00"), ":")
	}
	return c
}

// createImage pulls, or imports.
func (s *Server) createImage(w http.ResponseWriter, c *call) error {
	if from := c.query.Get("fromSrc"); from != "" && c.query.Get("fromImage") == "" {
		return s.importImage(w, c, from)
	}
	name := c.query.Get("fromImage")
	if name == "" {
		return invalid("fromImage or fromSrc is needed")
	}
	if ref, err := reference.ParseNormalizedNamed(name); err != nil {
		return invalid("invalid reference format: %v", err)
	} else if tag := c.query.Get("tag"); tag != "" && !strings.Contains(tag, ":") {
		name = reference.FamiliarName(ref) + ":" + tag
	}
	full, err := repoTag(name, digestTag(c.query.Get("tag")))
	if err != nil {
		return err
	}
	p, err := c.platform(32)
	if err != nil {
		return err
	}
	a, err := s.withCredential(c, full)
	if err != nil {
		return err
	}
	return s.pull(w, c, a, full, p)
}

// digestTag is a tag that is a digest.
func digestTag(tag string) string {
	if strings.Contains(tag, ":") {
		return tag
	}
	return ""
}

func (s *Server) pull(w http.ResponseWriter, c *call, a Access, name string, p *oci.Platform) error {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return invalid("invalid reference format: %v", err)
	}
	out := c.lines(w)
	names := []string{name}
	if reference.IsNameOnly(ref) {
		tags, err := a.Images.Tags(c.Context(), ref.Name())
		if err != nil {
			return pullError(err, ref)
		}
		names = nil
		for _, tag := range tags {
			names = append(names, ref.Name()+":"+tag)
		}
	}
	upToDate := true
	for _, n := range names {
		one, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return out.fail(invalid("invalid reference format: %v", err))
		}
		pulled, err := a.Images.Pull(c.Context(), n, denimage.PullOptions{Platform: p, Sink: &pulling{lines: out, ref: one}})
		if err != nil {
			return out.fail(pullError(err, one))
		}
		out.begin(one)
		out.status("", "Digest: "+string(pulled.Digest))
		upToDate = upToDate && pulled.UpToDate
		s.emit("pull", reference.FamiliarString(one), map[string]string{"name": reference.FamiliarName(one)})
	}
	status := "Downloaded newer image for "
	if upToDate {
		status = "Image is up to date for "
	}
	out.status("", "Status: "+status+reference.FamiliarString(ref))
	return nil
}

// pullError is a registry's refusal in docker's words, and of its class: that there is nothing.
func pullError(err error, ref reference.Named) error {
	name := reference.FamiliarString(ref)
	var platform *denimage.PlatformError
	switch {
	case errors.As(err, &platform):
		return notFound("no matching manifest for %s in the manifest list entries: %v", platformText(platform.Want), err)
	case errdefs.IsNotFound(err):
		return notFound("manifest for %s not found: manifest unknown: %v", name, err)
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return notFound("pull access denied for %s, repository does not exist or may require 'docker login': %v", reference.FamiliarName(ref), err)
	case errdefs.IsInvalidArgument(err):
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

func platformText(p oci.Platform) string { return path.Join(p.OS, p.Architecture, p.Variant) }

// pulling sends the line that docker begins a pull with before the first layer's.
type pulling struct {
	*lines
	ref reference.Named
}

// Event sends a layer's status.
func (p *pulling) Event(e progress.Event) {
	if e.Status != nil {
		p.begin(p.ref)
	}
	p.lines.Event(e)
}

// begin sends the first line about ref, once.
func (l *lines) begin(ref reference.Named) {
	tag := "latest"
	switch r := ref.(type) {
	case reference.Digested:
		tag = r.Digest().String()
	case reference.Tagged:
		tag = r.Tag()
	}
	key := "from " + ref.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[key] == "" {
		l.seen[key] = "said"
		l.write(progressLine{ID: tag, Status: "Pulling from " + reference.Path(ref)})
	}
}

func (s *Server) pushImage(w http.ResponseWriter, c *call) error {
	ref, err := reference.ParseNormalizedNamed(c.name)
	if err != nil {
		return invalid("invalid reference format: %v", err)
	}
	p, err := c.platform(46)
	if err != nil {
		return err
	}
	a, err := s.withCredential(c, ref.Name())
	if err != nil {
		return err
	}
	var names []string
	switch tag := c.query.Get("tag"); {
	case tag != "":
		name, err := repoTag(ref.Name(), tag)
		if err != nil {
			return err
		}
		names = []string{name}
	case !reference.IsNameOnly(ref):
		names = []string{ref.String()}
	default:
		if names, err = localTags(c, a, ref); err != nil {
			return err
		}
	}
	out := c.lines(w)
	for _, name := range names {
		if _, err := a.Images.Inspect(c.Context(), name, nil); err != nil {
			if errdefs.IsNotFound(err) && c.query.Get("tag") != "" {
				if _, err := localTags(c, a, ref); err != nil {
					return err
				}
				return notFound("tag does not exist: %s", withTag(name))
			}
			if errdefs.IsNotFound(err) {
				return notFound("An image does not exist locally with the tag: %s", reference.FamiliarName(ref))
			}
			return err
		}
	}
	out.status("", "The push refers to repository ["+ref.Name()+"]")
	for _, name := range names {
		d, err := a.Images.Push(c.Context(), name, denimage.PushOptions{Platform: p, Sink: out})
		if err != nil {
			return out.fail(pushError(err))
		}
		tag := "latest"
		if r, err := oci.ParseReference(name); err == nil {
			tag = cmp.Or(r.Tag, tag)
		}
		out.status("", fmt.Sprintf("%s: digest: %s size: %d", tag, d.Digest, d.Size))
		out.send(progressLine{Progress: &progressDetail{}, Aux: map[string]any{"Tag": tag, "Digest": d.Digest, "Size": d.Size}})
		s.emit("push", reference.FamiliarName(ref)+":"+tag, map[string]string{"name": reference.FamiliarName(ref)})
	}
	return nil
}

// localTags are all names that a repository has here.
func localTags(c *call, a Access, ref reference.Named) ([]string, error) {
	list, err := a.Images.List(c.Context(), filters{"reference": {reference.FamiliarName(ref)}})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Tags...)
	}
	if len(names) == 0 {
		return nil, notFound("An image does not exist locally with the tag: %s", reference.FamiliarName(ref))
	}
	return names, nil
}

func pushError(err error) error {
	if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
		return fmt.Errorf("denied: %w", err)
	}
	return err
}

// importImage makes an image of a tar: the body, or what a URL gives.
func (s *Server) importImage(w http.ResponseWriter, c *call, from string) error {
	name, err := repoTag(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	p, err := c.platform(32)
	if err != nil {
		return err
	}
	images, err := s.images()
	if err != nil {
		return err
	}
	out := c.lines(w)
	body := io.Reader(c.Body)
	if from != "-" {
		if !strings.Contains(from, "://") {
			from = "http://" + from
		}
		u, err := url.Parse(from)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return invalid("invalid fromSrc %.200q: want - or an http(s) URL", from)
		}
		answer, err := fetch(c, u.String())
		if err != nil {
			return err
		}
		defer answer.Close()
		out.status("", "Downloading from "+from)
		body = answer
	}
	var changes []string
	for _, v := range c.query["changes"] {
		changes = append(changes, strings.Split(v, "\n")...)
	}
	img, err := images.Import(c.Context(), body, denimage.ImportOptions{Name: name, Changes: nonEmpty(changes), Message: c.query.Get("message"), Platform: p, From: from})
	if err != nil {
		return out.fail(err)
	}
	s.emit("import", string(img.ConfigDigest), map[string]string{"name": cmp.Or(name, string(img.ConfigDigest))})
	out.status("", string(img.ConfigDigest))
	return nil
}

func nonEmpty(in []string) (out []string) {
	for _, s := range in {
		if strings.TrimSpace(s) != "" {
			out = append(out, s)
		}
	}
	return out
}

// fetch reads a URL.
func fetch(c *call, u string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(c.Context(), http.MethodGet, u, nil)
	if err != nil {
		return nil, invalid("invalid URL: %v", err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, unavailable("%v", err)
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, unavailable("GET %s: %s", u, answer.Status)
	}
	return answer.Body, nil
}
