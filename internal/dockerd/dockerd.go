// Package dockerd is the door for what starts dockerd or the docker:dind image today:
// it reads dockerd's daemon.json into flags, and the entry point's arguments and
// environment into what den serve is asked for. It decides nothing.
//
// The rules are those of dockerd's configuration reference, and of docker:dind's
// dockerd-entrypoint.sh and docker-entrypoint.sh.
package dockerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
)

// DefaultConfigFile is where dockerd looks for its configuration.
const DefaultConfigFile = "/etc/docker/daemon.json"

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// flagNames are the flags whose keys in the file have another name: lists are plural there.
func flagNames() map[string]string {
	return map[string]string{
		"hosts": "host", "registry-mirrors": "registry-mirror", "insecure-registries": "insecure-registry", "storage-opts": "storage-opt",
		"exec-opts": "exec-opt", "dns-opts": "dns-opt", "labels": "label", "log-opts": "log-opt", "default-ulimits": "default-ulimit",
		"default-address-pools": "default-address-pool", "runtimes": "add-runtime", "features": "feature", "authorization-plugins": "authorization-plugin",
		"cdi-spec-dirs": "cdi-spec-dir", "default-network-opts": "default-network-opt", "host-gateway-ips": "host-gateway-ip", "graph": "data-root",
		"node-generic-resources": "node-generic-resource", "cluster-store-opts": "cluster-store-opt",
	}
}

// elsewhere are keys without a flag, and those that other parts of den read from the file
// themselves: no value of theirs is given to a flag.
func elsewhere(key string) bool {
	return slices.Contains([]string{"builder", "proxies", "max-concurrent-downloads", "max-concurrent-uploads", "deprecated-key-path", "allow-nondistributable-artifacts",
		"registry-mirrors", "insecure-registries", "containerd", "containerd-namespace", "containerd-plugin-namespace"}, key)
}

// MergeFile gives the flags of f what a daemon.json says. Where the file and the command line both
// speak, or the file says what no flag knows, the error is dockerd's. A file that is not there is
// an error only if it was named. It is of class errdefs.ErrInvalidArgument.
func MergeFile(f *pflag.FlagSet, file string, named bool) error {
	text, err := read(file)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil
	}
	if err == nil {
		err = merge(f, text)
	}
	if err != nil {
		return fmt.Errorf("unable to configure the Docker daemon with file %s: %w", file, err)
	}
	return nil
}

func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(text) > maxConfigBytes {
		err = fmt.Errorf("longer than %d bytes: %w", maxConfigBytes, errdefs.ErrInvalidArgument)
	}
	return text, err
}

func merge(f *pflag.FlagSet, text []byte) error {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // Notepad's
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	var values map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&values); err != nil {
		return fmt.Errorf("invalid JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if d.More() {
		return fmt.Errorf("invalid JSON: text after its end: %w", errdefs.ErrInvalidArgument)
	}
	names := flagNames()
	var unknown, twice []string
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		flag := lookup(f, names, key)
		switch {
		case flag != nil && flag.Changed:
			twice = append(twice, fmt.Sprintf("%s: (from flag: %s, from file: %v)", key, said(flag), values[key]))
		case flag == nil && !elsewhere(key):
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("the following directives don't match any configuration option: %s: %w", strings.Join(unknown, ", "), errdefs.ErrInvalidArgument)
	}
	if len(twice) > 0 {
		return fmt.Errorf("the following directives are specified both as a flag and in the configuration file: %s: %w", strings.Join(twice, ", "), errdefs.ErrInvalidArgument)
	}
	for _, key := range keys {
		if elsewhere(key) {
			continue
		}
		if err := set(lookup(f, names, key), key, values[key]); err != nil {
			return err
		}
	}
	return nil
}

// said is a flag's value as dockerd prints it: a list without commas.
func said(flag *pflag.Flag) string {
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		return fmt.Sprint(list.GetSlice())
	}
	return flag.Value.String()
}

func lookup(f *pflag.FlagSet, names map[string]string, key string) *pflag.Flag {
	if name, ok := names[key]; ok {
		return f.Lookup(name)
	}
	if slices.Contains([]string{"config-file", "help", "version", "validate"}, key) {
		return nil
	}
	return f.Lookup(key)
}

// set gives a flag one value of the file: each element of a list, each pair of an object.
func set(flag *pflag.Flag, key string, value any) error {
	var texts []string
	switch v := value.(type) {
	case nil:
		return nil
	case []any:
		for _, e := range v {
			texts = append(texts, element(e))
		}
	case map[string]any:
		pairs := make([]string, 0, len(v))
		for name, e := range v {
			pairs = append(pairs, name+"="+pair(e))
		}
		slices.Sort(pairs)
		texts = pairs
	default:
		texts = []string{element(v)}
	}
	for _, text := range texts {
		if err := flag.Value.Set(text); err != nil {
			return fmt.Errorf("%s: %.200q: %w: %w", key, text, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// element is one value as a flag takes it; an object is "key=value,key=value".
func element(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	pairs := make([]string, 0, len(m))
	for name, e := range m {
		pairs = append(pairs, fmt.Sprintf("%s=%v", name, e))
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// pair is the value of one pair: that of default-ulimits is an object with two limits.
func pair(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	soft, hard := m["Soft"], m["Hard"]
	switch {
	case soft != nil && hard != nil:
		return fmt.Sprintf("%v:%v", soft, hard)
	case hard != nil:
		return fmt.Sprint(hard)
	}
	return element(v)
}
