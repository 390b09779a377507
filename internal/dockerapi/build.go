package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/registry"

	"den/internal/build"
	denimage "den/internal/image"
	denregistry "den/internal/registry"
)

// build answers the requests of docker's classic builder, which den's own solver runs.
func (s *Server) build(w http.ResponseWriter, c *call) error {
	if v := c.query.Get("version"); v != "" && v != "1" {
		return unimplemented("builder version %s: this server builds by the classic requests of POST /build; set DOCKER_BUILDKIT=0", v)
	}
	req, err := c.buildRequest()
	if err != nil {
		return err
	}
	a, err := s.withConfig(c)
	if err != nil {
		return err
	}
	// The context still arrives while lines go out. A test's writer knows no such thing.
	_ = http.NewResponseController(w).EnableFullDuplex()
	out := c.lines(w)
	show := &buildLines{lines: out, quiet: c.flag("q"), steps: map[string]bool{}}
	req.Sink = show
	res, err := a.Builder.Solve(c.Context(), req)
	if err != nil {
		return show.fail(err)
	}
	show.done(res, req.Tags)
	for _, name := range res.Names {
		s.emit("tag", string(res.ImageID), map[string]string{"name": name})
	}
	return nil
}

// buildRequest reads the query and takes the body for the context.
func (c *call) buildRequest() (build.Request, error) {
	q := c.query
	r := build.Request{
		Tar: c.Body, File: q.Get("dockerfile"), Tags: nonEmpty(q["t"]), Target: q.Get("target"),
		NoCache: c.flag("nocache"), Pull: c.flag("pull"),
		// A client's names are not to be looked up in the server's environment.
		LookupEnv: func(string) (string, bool) { return "", false },
	}
	if remote := q.Get("remote"); remote != "" {
		if remote == "client-session" {
			return r, unimplemented("contexts in a session are BuildKit's: set DOCKER_BUILDKIT=0")
		}
		if err := checkRemote(remote); err != nil {
			return r, err
		}
		r.Tar, r.Context = nil, remote
	}
	for _, name := range r.Tags {
		if _, err := repoTag(name, ""); err != nil {
			return r, err
		}
	}
	if p := q.Get("platform"); p != "" {
		if _, err := parsePlatform(p); err != nil {
			return r, err
		}
		r.Platforms = []string{p}
	}
	if c.flag("squash") {
		r.Rewriting = denimage.Rewriting{Squash: true}
	}
	for _, h := range q["extrahosts"] {
		r.AddHosts = append(r.AddHosts, nonEmpty(strings.Split(h, ","))...)
	}
	return r, c.buildSteps(&r)
}

// buildSteps reads what concerns the steps.
func (c *call) buildSteps(r *build.Request) error {
	q := c.query
	switch mode := q.Get("networkmode"); mode {
	case "", "default", "bridge":
	default:
		r.Network = mode
	}
	if r.Network == "host" {
		r.Allow = append(r.Allow, "network.host") // who may ask the daemon may have it
	}
	if n := q.Get("shmsize"); n != "" && n != "0" {
		bytes, err := strconv.ParseInt(n, 10, 64)
		if err != nil || bytes < 0 {
			return invalid("invalid shmsize %q: want bytes", n)
		}
		r.ShmSize = strconv.FormatInt(bytes, 10)
	}
	var args map[string]*string
	if err := queryJSON(q.Get("buildargs"), "buildargs", &args); err != nil {
		return err
	}
	for name, value := range args {
		// null is an argument without a value: it takes the Dockerfile's default.
		if value != nil {
			r.BuildArgs = append(r.BuildArgs, name+"="+*value)
		}
	}
	var labels map[string]string
	if err := queryJSON(q.Get("labels"), "labels", &labels); err != nil {
		return err
	}
	for name, value := range labels {
		r.Labels = append(r.Labels, name+"="+value)
	}
	var limits []struct {
		Name       string
		Soft, Hard int64
	}
	if err := queryJSON(q.Get("ulimits"), "ulimits", &limits); err != nil {
		return err
	}
	for _, l := range limits {
		r.Ulimits = append(r.Ulimits, fmt.Sprintf("%s=%d:%d", l.Name, l.Soft, l.Hard))
	}
	return nil
}

func queryJSON(text, name string, v any) error {
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return invalid("error reading %s: %v", name, err)
	}
	return nil
}

// checkRemote refuses what would be a path of the server's.
func checkRemote(remote string) error {
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "github.com/", "ssh://"} {
		if strings.HasPrefix(remote, prefix) {
			return nil
		}
	}
	return invalid("invalid remote %.200q: want an http(s) or git URL", remote)
}

// withConfig is a build's access with the credentials of its X-Registry-Config header.
func (s *Server) withConfig(c *call) (Access, error) {
	own, err := s.access(nil)
	if err != nil {
		return own, err
	}
	auths := configCredentials(c.Header.Get("X-Registry-Config"))
	if len(auths) == 0 {
		return own, nil
	}
	return s.access(func(ctx context.Context, host, repository string) (denregistry.Credential, error) {
		if cred, ok := auths[host]; ok {
			return cred, nil
		}
		return own.Registry.Credential(ctx, host, repository)
	})
}

// configCredentials reads X-Registry-Config: credentials by address, in "auths" or without.
func configCredentials(header string) map[string]denregistry.Credential {
	if header == "" || len(header) > maxAuthHeader {
		return nil
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(unbase64(header), &all) != nil {
		return nil
	}
	if inner, ok := all["auths"]; ok {
		all = nil
		if json.Unmarshal(inner, &all) != nil {
			return nil
		}
	}
	found := map[string]denregistry.Credential{}
	for address, raw := range all {
		var a registry.AuthConfig
		if json.Unmarshal(raw, &a) != nil {
			continue
		}
		if cred := credentialOf(a); cred != (denregistry.Credential{}) {
			found[serverHost(address)] = cred
		}
	}
	return found
}

// cancelBuild ends a build by its id, which only BuildKit's have: classic ones end with their connection.
func (s *Server) cancelBuild(http.ResponseWriter, *call) error {
	return notFound("no such build: builds end when their connection is closed")
}
