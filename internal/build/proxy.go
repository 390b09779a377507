package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxConfigBytes bounds docker's config.json.
const maxConfigBytes = 1 << 20

// proxyNames are the build args that the frontend knows without an ARG. It
// hands them to RUN apart from the environment that counts for the cache and
// goes into images.
var proxyNames = [...]string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// proxyArgs returns the proxies that apply where args does not say otherwise:
// those of docker's configuration, else of the environment.
func proxyArgs(r *Request, args map[string]string) (map[string]string, error) {
	configured, err := configProxies(r)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range proxyNames {
		if given(args, name) {
			continue
		}
		for _, v := range []string{configured[name], r.env(name), r.env(strings.ToLower(name))} {
			if v != "" {
				out[name] = v
				break
			}
		}
	}
	return out, nil
}

// given says whether a build arg of that name, in whatever case, was given.
func given(args map[string]string, name string) bool {
	for k := range args {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

// configProxies reads the "proxies" of docker's config.json: those for the
// daemon at DOCKER_HOST, else the default.
func configProxies(r *Request) (map[string]string, error) {
	dir := r.env("DOCKER_CONFIG")
	if dir == "" {
		home := r.env("HOME")
		if home == "" {
			return nil, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	f, err := os.Open(filepath.Join(dir, "config.json"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("docker configuration: %w", err)
	}
	defer f.Close()
	var c struct {
		Proxies map[string]struct {
			HTTPProxy, HTTPSProxy, NoProxy, FTPProxy, AllProxy string
		}
	}
	if err := json.NewDecoder(io.LimitReader(f, maxConfigBytes)).Decode(&c); err != nil {
		return nil, fmt.Errorf("docker configuration %s: %w", f.Name(), err)
	}
	p, ok := c.Proxies[r.env("DOCKER_HOST")]
	if !ok {
		p = c.Proxies["default"]
	}
	return map[string]string{
		"HTTP_PROXY": p.HTTPProxy, "HTTPS_PROXY": p.HTTPSProxy, "NO_PROXY": p.NoProxy,
		"FTP_PROXY": p.FTPProxy, "ALL_PROXY": p.AllProxy,
	}, nil
}
