package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/pkg/kvfile"

	"den/internal/engine"
)

// environment reads --env-file and --env, as docker does: a name alone takes
// den's own value, or takes the variable away if there is none. The proxies of
// docker's configuration come first, where --env does not say otherwise.
func (call runCall) environment(req *engine.RunRequest) error {
	var entries []string
	for _, e := range call.options.env {
		name, _, hasValue := strings.Cut(e, "=")
		if name == "" {
			return &usageError{"invalid environment variable: " + e}
		}
		if value, ok := os.LookupEnv(name); ok && !hasValue {
			e = name + "=" + value
		}
		entries = append(entries, e)
	}
	proxies, err := call.proxies(entries)
	if err != nil {
		return err
	}
	req.Env = proxies
	for _, file := range call.options.envFiles {
		lines, err := kvfile.Parse(file, os.LookupEnv)
		if err != nil {
			return &usageError{fmt.Sprintf("env file: %v", err)}
		}
		req.Env = append(req.Env, lines...)
	}
	req.Env = append(req.Env, entries...)
	return nil
}

// proxies are those of docker's configuration that env does not name.
func (call runCall) proxies(env []string) ([]string, error) {
	dir := call.globals.config
	if dir == "" {
		dir = config.Dir()
	}
	c, err := config.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("docker configuration: %w", err)
	}
	given := map[string]*string{}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		given[name] = &value
	}
	var out []string
	for name, value := range c.ParseProxyConfig(os.Getenv("DOCKER_HOST"), given) {
		if value != nil && !slices.ContainsFunc(env, func(e string) bool { return e == name || strings.HasPrefix(e, name+"=") }) {
			out = append(out, name+"="+*value)
		}
	}
	slices.Sort(out)
	return out, nil
}
