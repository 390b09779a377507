package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"den/internal/oci"

	"github.com/containerd/errdefs"
)

// LoginResult says what Login did.
type LoginResult struct {
	// Key is the name that the credential is stored under.
	Key string
	// File is where, unless Helper is set: then docker-credential-HELPER has it.
	File, Helper string
	// Warning is docker's about a password stored unencrypted, or empty.
	Warning string
}

const unencryptedWarning = `WARNING! Your credentials are stored unencrypted in '%s'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/
`

// Ping tells whether host ("" means Docker Hub) answers as a registry and takes
// the credential stored for it, if it wants one.
func (c *Client) Ping(ctx context.Context, host string) error {
	domain := canonicalHost(host)
	if !validHost(domain) {
		return fmt.Errorf("registry %q: want HOST[:PORT]: %w", host, errdefs.ErrInvalidArgument)
	}
	if _, err := c.ping(ctx, domain); err != nil {
		return fmt.Errorf("registry %s: %w", domain, err)
	}
	return nil
}

func (c *Client) ping(ctx context.Context, domain string) (endpoint, error) {
	e, err := c.origin(ctx, domain)
	if err != nil {
		return e, err
	}
	resp, err := e.do(ctx, call{method: http.MethodGet, path: "/", accept: []int{http.StatusOK}})
	if err != nil {
		return e, err
	}
	drain(resp)
	return e, nil
}

// Login verifies the credential with host ("" means Docker Hub) and stores it
// as docker login does: with the helper that the configuration names, else in
// the file, which is replaced as a whole and readable for its owner only.
func (c *Client) Login(ctx context.Context, host string, cred Credential) (LoginResult, error) {
	domain := canonicalHost(host)
	if !validHost(domain) {
		return LoginResult{}, fmt.Errorf("log in to %q: want HOST[:PORT]: %w", host, errdefs.ErrInvalidArgument)
	}
	r, err := c.login(ctx, domain, cred)
	if err != nil {
		return r, fmt.Errorf("log in to %s: %w", domain, err)
	}
	return r, nil
}

func (c *Client) login(ctx context.Context, domain string, cred Credential) (LoginResult, error) {
	if cred == (Credential{}) {
		return LoginResult{}, fmt.Errorf("no user name and no password given: %w", errdefs.ErrInvalidArgument)
	}
	try := c.WithCredentials(func(context.Context, string, string) (Credential, error) { return cred, nil })
	try.loggingIn = true
	e, err := try.ping(ctx, domain)
	if err != nil {
		return LoginResult{}, err
	}
	if cred.IdentityToken == "" {
		cred.IdentityToken = e.session.identityToken(ctx, cred)
	}
	return c.storeCredential(ctx, domain, cred)
}

// identityToken asks for a token that can be stored in the password's place;
// few services give one.
func (s *session) identityToken(ctx context.Context, cred Credential) string {
	s.mu.Lock()
	ch := s.challenge
	s.mu.Unlock()
	if ch == nil || ch.scheme != "bearer" {
		return ""
	}
	t, err := s.token(ctx, ch, cred, nil, true)
	if err != nil {
		return ""
	}
	return t.RefreshToken
}

func (c *Client) storeCredential(ctx context.Context, domain string, cred Credential) (LoginResult, error) {
	r := LoginResult{Key: serverURL(domain), File: c.credentialFiles()[0]}
	err := editConfig(r.File, func(doc map[string]json.RawMessage) error {
		var config credentialConfig
		if err := decodeParts(doc, &config); err != nil {
			return err
		}
		entry := authEntry{IdentityToken: cred.IdentityToken, RegistryToken: cred.RegistryToken}
		if r.Helper = config.CredsStore; r.Helper == "" || hasKey(config.CredHelpers, domain) {
			key, _ := findKey(config.CredHelpers, domain)
			r.Helper = config.CredHelpers[key]
		}
		if r.Helper != "" {
			if err := storeInHelper(ctx, r.Helper, r.Key, cred); err != nil {
				return err
			}
			entry = authEntry{}
		} else {
			password := cred.Password
			if cred.IdentityToken != "" {
				password = ""
			}
			entry.Auth = base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + password))
		}
		return setAuth(doc, domain, &entry)
	})
	if r.Helper != "" {
		r.File = ""
	} else if cred.IdentityToken == "" {
		r.Warning = fmt.Sprintf(unencryptedWarning, r.File)
	}
	return r, err
}

// Logout removes the credential stored for host ("" means Docker Hub) where
// Login puts it; that there is none is errdefs.ErrNotFound.
func (c *Client) Logout(ctx context.Context, host string) error {
	domain := canonicalHost(host)
	file := c.credentialFiles()[0]
	found := false
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log out of %s: not logged in: %w", domain, errdefs.ErrNotFound)
	}
	err := editConfig(file, func(doc map[string]json.RawMessage) error {
		var config credentialConfig
		if err := decodeParts(doc, &config); err != nil {
			return err
		}
		helper := config.CredsStore
		if key, ok := findKey(config.CredHelpers, domain); ok {
			helper = config.CredHelpers[key]
		}
		if helper != "" {
			if _, err := runHelper(ctx, helper, "erase", []byte(serverURL(domain))); err != nil {
				return err
			}
		}
		found = helper != "" || hasKey(config.Auths, domain)
		return setAuth(doc, domain, nil)
	})
	if err == nil && !found {
		err = fmt.Errorf("not logged in: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("log out of %s: %w", domain, err)
	}
	return nil
}

func hasKey[V any](m map[string]V, place string) bool {
	_, ok := findKey(m, place)
	return ok
}

func decodeParts(doc map[string]json.RawMessage, config *credentialConfig) error {
	whole, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return json.Unmarshal(whole, config)
}

// setAuth replaces all of the spellings under which doc has the domain by one
// entry, or by none. Whatever else the document holds stays as it is.
func setAuth(doc map[string]json.RawMessage, domain string, entry *authEntry) error {
	auths := map[string]json.RawMessage{}
	if raw := doc["auths"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &auths); err != nil {
			return err
		}
	}
	for key := range auths {
		if canonicalHost(key) == domain {
			delete(auths, key)
		}
	}
	var err error
	if entry != nil {
		if auths[serverURL(domain)], err = json.Marshal(entry); err != nil {
			return err
		}
	}
	doc["auths"], err = json.Marshal(auths)
	return err
}

// editConfig changes a configuration file as one step: alone among den's
// processes, and by rename for all others. A symbolic link to it stays.
func editConfig(file string, edit func(doc map[string]json.RawMessage) error) error {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Where directories cannot be locked (NFS), the rename has to do.
	_ = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)

	doc := map[string]json.RawMessage{}
	data, err := readFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(strings.TrimSpace(string(data))) > 0 {
		if err := json.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("%s is not the JSON of a configuration, correct or remove it: %w", file, err)
		}
	}
	if err := edit(doc); err != nil {
		return err
	}
	out, err := json.MarshalIndent(doc, "", "\t")
	if err != nil {
		return err
	}
	if string(out) == strings.TrimSpace(string(data)) {
		return nil
	}
	return replaceFile(file, append(out, '\n'))
}

// replaceFile writes a file that only its owner can read, complete or not at all.
func replaceFile(file string, data []byte) error {
	if len(data) > maxConfigFileBytes {
		return fmt.Errorf("%s: %w", file, oci.ErrTooLarge)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".config.json-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if info, err := os.Stat(file); err == nil { // root may write for another
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			_ = tmp.Chown(int(st.Uid), int(st.Gid))
		}
	}
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
