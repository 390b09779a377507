// Package buildah is the door for those who come from buildah: it knows how
// buildah names images and places, and where its words mean something else here.
package buildah

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// A Transport says how an image is reached (man containers-transports).
type Transport string

// The transports that den knows.
const (
	Registry      Transport = "docker"
	DockerArchive Transport = "docker-archive"
	OCILayout     Transport = "oci"
	OCIArchive    Transport = "oci-archive"
	Storage       Transport = "containers-storage"
)

// A Place is where an image is, or goes.
type Place struct {
	Transport Transport
	// Path of an archive or layout.
	Path string
	// Name is the image's, perhaps empty where there is a path; of an OCI layout
	// it may be a tag alone.
	Name string
}

// String writes the place as ParsePlace reads it.
func (p Place) String() string {
	switch {
	case p.Transport == Registry:
		return "docker://" + p.Name
	case p.Path == "":
		return string(p.Transport) + ":" + p.Name
	case p.Name == "":
		return string(p.Transport) + ":" + p.Path
	}
	return string(p.Transport) + ":" + p.Path + ":" + p.Name
}

// ParsePlace reads "TRANSPORT:..."; without a transport it is the given one.
func ParsePlace(s string, otherwise Transport) (Place, error) {
	transport, rest, ok := strings.Cut(s, ":")
	if !ok {
		transport, rest = "", s
	}
	p := Place{Transport: Transport(transport)}
	switch p.Transport {
	case Registry:
		if name, ok := strings.CutPrefix(rest, "//"); ok {
			p.Name = name
			break
		}
		p = Place{Transport: otherwise, Name: s} // an image that is called docker
	case DockerArchive, OCIArchive, OCILayout:
		p.Path, p.Name, _ = strings.Cut(rest, ":")
		if p.Path == "" {
			return p, fmt.Errorf("%q: want %s:PATH[:NAME]: %w", s, transport, errdefs.ErrInvalidArgument)
		}
		return p, nil
	case Storage:
		p.Name = rest
		if strings.HasPrefix(rest, "[") { // another store, which den has not
			_, p.Name, _ = strings.Cut(rest, "]")
		}
	case "dir", "docker-daemon", "ostree", "tarball", "sif", "atomic":
		return p, fmt.Errorf("transport %s: den has docker://, docker-archive:, oci:, oci-archive: and containers-storage: %w", transport, errdefs.ErrNotImplemented)
	default:
		p = Place{Transport: otherwise, Name: s}
	}
	if p.Name = Name(p.Name); p.Name == "" {
		return p, fmt.Errorf("%q names no image: %w", s, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// Name is an image's name without the "localhost/" that buildah puts before short
// ones: here those are docker's.
func Name(s string) string { return strings.TrimPrefix(s, "localhost/") }

// BareID is an image's ID as buildah prints it.
func BareID(digest string) string {
	_, hex, ok := strings.Cut(digest, ":")
	if !ok {
		return digest
	}
	return hex
}

// Isolation is a rung for one of buildah's words: its own mean that den chooses.
func Isolation(s string) string {
	switch s {
	case "chroot", "oci", "rootless", "default":
		return ""
	}
	return s
}

// Network is a mode that den has for one of buildah's words.
func Network(s string) (string, error) {
	switch s {
	case "", "default", "private", "bridge", "slirp4netns", "pasta":
		return "default", nil
	case "host", "none":
		return s, nil
	}
	return "", fmt.Errorf("network %q: want default, private, host or none: %w", s, errdefs.ErrInvalidArgument)
}

// maxFileBytes bounds what is read of a user's own files.
const maxFileBytes = 16 << 20

// ReadLines reads a file of NAME=VALUE lines; empty ones and comments are left out.
func ReadLines(path string) ([]string, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, maxFileBytes, errdefs.ErrOutOfRange)
	}
	return data, err
}

// FindFile is the file that a context is built by: Containerfile before Dockerfile.
// Empty is whatever den finds.
func FindFile(context string) string {
	for _, name := range []string{"Containerfile", "Dockerfile"} {
		path := filepath.Join(context, name)
		if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
			return path
		}
	}
	return ""
}

// FindIgnore is the context's own list of what to leave out where den would not
// find it: .containerignore goes before .dockerignore.
func FindIgnore(context string) string {
	path := filepath.Join(context, ".containerignore")
	if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
		return path
	}
	return ""
}

// Beside copies a Dockerfile and a list of what to ignore into dir, where the
// frontend finds the one beside the other, and returns the Dockerfile's new path.
func Beside(dir, file, ignore string) (string, error) {
	path := filepath.Join(dir, "Dockerfile")
	for to, from := range map[string]string{path: file, path + ".dockerignore": ignore} {
		data, err := readFile(from)
		if err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
		if err != nil {
			return "", err
		}
	}
	return path, nil
}

// Edits are changes of an image's configuration.
type Edits struct{ Env, UnsetEnv, UnsetLabel []string }

// Any says whether there is one.
func (e Edits) Any() bool { return len(e.Env)+len(e.UnsetEnv)+len(e.UnsetLabel) > 0 }

// Apply changes a configuration and leaves what it does not know as it is. A name
// without a value gets the variable's.
func (e Edits) Apply(raw []byte, lookup func(string) (string, bool)) ([]byte, error) {
	doc := map[string]json.RawMessage{}
	config := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	var env []string
	var labels map[string]string
	if err := decode(doc["config"], &config); err != nil {
		return nil, err
	}
	if err := decode(config["Env"], &env); err != nil {
		return nil, err
	}
	if err := decode(config["Labels"], &labels); err != nil {
		return nil, err
	}
	for _, name := range e.UnsetEnv {
		env = without(env, name)
	}
	for _, pair := range e.Env {
		name, _, ok := strings.Cut(pair, "=")
		if !ok {
			v, _ := lookup(name)
			pair = name + "=" + v
		}
		env = append(without(env, name), pair)
	}
	for _, name := range e.UnsetLabel {
		delete(labels, name)
	}
	for name, v := range map[string]any{"Env": env, "Labels": labels} {
		part, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if config[name] = part; string(part) == "null" {
			delete(config, name)
		}
	}
	part, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	doc["config"] = part
	return json.Marshal(doc)
}

func decode(raw json.RawMessage, to any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	return nil
}

func without(env []string, name string) []string {
	var out []string
	for _, pair := range env {
		if k, _, _ := strings.Cut(pair, "="); k != name {
			out = append(out, pair)
		}
	}
	return out
}
