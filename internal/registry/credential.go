package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"den/internal/oci"
)

// hubKey is what Docker Hub's credentials are stored under, since 2013.
const hubKey = "https://index.docker.io/v1/"

// Credential is what a registry asks for. The zero Credential is anonymous.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token in place of a password.
	IdentityToken string
	// RegistryToken is a bearer token to be sent as it is.
	RegistryToken string
}

// CredentialFunc finds the credential for a repository ("library/debian", or
// empty) of a host ("docker.io"). None is the zero Credential and no error.
type CredentialFunc func(ctx context.Context, host, repository string) (Credential, error)

// authEntry is one of a configuration's auths.
type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// credentialConfig is the part of docker's config.json, or of podman's
// auth.json, that tells where credentials are.
type credentialConfig struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

// credentialFiles are the files that may hold credentials, first the one that
// Login writes.
func (s *shared) credentialFiles() []string {
	var files []string
	if f := s.o.Env("REGISTRY_AUTH_FILE"); f != "" && s.o.ConfigDir == "" {
		files = append(files, f)
	}
	files = append(files, filepath.Join(s.configDir(), "config.json"))
	if d := s.o.Env("XDG_RUNTIME_DIR"); d != "" {
		files = append(files, filepath.Join(d, "containers/auth.json"))
	}
	config := s.o.Env("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(s.home(), ".config")
	}
	return append(files, filepath.Join(config, "containers/auth.json"))
}

// storedCredential looks through DOCKER_AUTH_CONFIG, whose entries win, and
// the files; the first that knows the host answers. They are read each time:
// somebody may log in while we run.
func (c *Client) storedCredential(ctx context.Context, host, repository string) (Credential, error) {
	if env := c.o.Env("DOCKER_AUTH_CONFIG"); env != "" {
		cred, err := c.credentialIn(ctx, []byte(env), host, repository)
		if err != nil {
			return cred, fmt.Errorf("DOCKER_AUTH_CONFIG: %w", err)
		}
		if cred != (Credential{}) {
			return cred, nil
		}
	}
	for _, file := range c.credentialFiles() {
		data, err := readFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			c.noticeOnce("credentials are not used: %v", err)
			continue
		}
		if err != nil {
			return Credential{}, fmt.Errorf("credentials: %w", err)
		}
		cred, err := c.credentialIn(ctx, data, host, repository)
		if err != nil {
			return cred, fmt.Errorf("credentials in %s: %w", file, err)
		}
		if cred != (Credential{}) {
			return cred, nil
		}
	}
	if c.o.Fallback != nil {
		return c.o.Fallback(ctx, host, repository)
	}
	return Credential{}, nil
}

// credentialIn looks into one configuration: a helper named for the host, what
// is stored for the repository or a group above it (as podman and GitLab
// write), what is stored for the host, the store for everything.
func (c *Client) credentialIn(ctx context.Context, data []byte, host, repository string) (Credential, error) {
	var config credentialConfig
	if err := json.Unmarshal(data, &config); err != nil {
		// The text of a JSON error quotes at most a character of a secret.
		return Credential{}, err
	}
	if key, ok := findKey(config.CredHelpers, host); ok {
		return c.askHelper(ctx, config.CredHelpers[key], host, repository)
	}
	for place := strings.TrimSuffix(host+"/"+repository, "/"); ; {
		if key, ok := findKey(config.Auths, place); ok && config.Auths[key] != (authEntry{}) {
			cred, err := config.Auths[key].credential()
			if err != nil {
				return cred, fmt.Errorf("auths %q: %w", key, err)
			}
			return cred, nil
		}
		i := strings.LastIndexByte(place, '/')
		if i < 0 {
			break
		}
		place = place[:i]
	}
	if config.CredsStore != "" {
		return c.askHelper(ctx, config.CredsStore, host, repository)
	}
	return Credential{}, nil
}

// findKey finds the key that means place: literally, else in one of the many
// ways that it is written, the first in order.
func findKey[V any](m map[string]V, place string) (string, bool) {
	if _, ok := m[place]; ok {
		return place, true
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if key != "" && canonicalHost(key) == place {
			return key, true
		}
	}
	return "", false
}

// serverURL is the key that helpers and Login store a host under.
func serverURL(host string) string {
	if host == oci.DockerHub {
		return hubKey
	}
	return host
}

func (a authEntry) credential() (Credential, error) {
	c := Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth == "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		raw, err = base64.RawStdEncoding.DecodeString(a.Auth)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return Credential{}, errors.New(`its "auth" is not the base64 of USER:PASSWORD`)
	}
	c.Username, c.Password = user, strings.Trim(password, "\x00")
	return c, nil
}
