package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// maxSecretBytes is BuildKit's bound of one secret.
const maxSecretBytes = 500 << 10

// secretStore has the secrets of a build, by id. They are read when a step
// wants them, never before, and kept nowhere.
type secretStore struct {
	sources map[string]secretSource
	env     func(string) (string, bool)
}

type secretSource struct{ file, env string }

// parseSecrets reads "--secret id=name[,src=path|env=NAME][,type=file|env]".
func parseSecrets(r *Request) (*secretStore, error) {
	s := &secretStore{sources: map[string]secretSource{}, env: r.lookupEnv}
	for _, value := range r.Secrets {
		id, src, err := parseSecret(value)
		if err != nil {
			return nil, err
		}
		if src == (secretSource{}) {
			// Neither file nor variable: the variable of that name, else the file.
			if _, ok := r.lookupEnv(id); ok {
				src.env = id
			} else {
				src.file = id
			}
		}
		if src.file != "" {
			if _, err := os.Stat(src.file); err != nil {
				return nil, fmt.Errorf("secret %q: %w", id, err)
			}
		}
		s.sources[id] = src
	}
	return s, nil
}

func parseSecret(value string) (id string, src secretSource, err error) {
	fields, err := splitCSV(value)
	if err != nil {
		return "", src, invalid("secret %q: %w", value, err)
	}
	var kind string
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return "", src, invalid("secret: field %q must be a key=value pair", f)
		}
		switch strings.ToLower(k) {
		case "id":
			id = v
		case "src", "source":
			src.file = v
		case "env":
			src.env = v
		case "type":
			if v != "file" && v != "env" {
				return "", src, invalid("secret: type %q is not supported, want file or env", v)
			}
			kind = v
		default:
			return "", src, invalid("secret: unexpected key %q", k)
		}
	}
	if id == "" {
		return "", src, invalid("secret %q has no id", value)
	}
	if kind == "env" && src.env == "" {
		src.env, src.file = src.file, ""
	}
	return id, src, nil
}

// GetSecret returns a secret's value.
func (s *secretStore) GetSecret(_ context.Context, id string) ([]byte, error) {
	src, ok := s.sources[id]
	if !ok {
		return nil, fmt.Errorf("secret %s: %w", id, errdefs.ErrNotFound)
	}
	if src.env != "" {
		v, ok := s.env(src.env)
		if !ok {
			return nil, fmt.Errorf("secret %s: variable %s is not set: %w", id, src.env, errdefs.ErrNotFound)
		}
		return []byte(v), nil
	}
	f, err := os.Open(src.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("secret %s: %w: %w", id, errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	if len(data) > maxSecretBytes {
		return nil, fmt.Errorf("secret %s is larger than %d bytes: %w", id, maxSecretBytes, errdefs.ErrInvalidArgument)
	}
	return data, nil
}
