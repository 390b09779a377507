package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"den/internal/engine"
)

// parseVolume reads docker's -v: [SOURCE:]TARGET[:OPTIONS].
func parseVolume(s string) (engine.Mount, error) {
	m := engine.Mount{Kind: engine.MountVolume}
	parts := strings.Split(s, ":")
	var options string
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target, options = parts[0], parts[1], parts[2]
	default:
		return m, invalidMount(s, "too many colons; want [SOURCE:]TARGET[:OPTIONS]")
	}
	for _, p := range parts {
		if p == "" {
			return m, invalidMount(s, "empty section between colons")
		}
	}
	if strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, ".") || strings.HasPrefix(m.Source, "~") {
		m.Kind, m.CreateSource = engine.MountBind, true
		abs, err := filepath.Abs(expandHome(m.Source))
		if err != nil {
			return m, invalidMount(s, err.Error())
		}
		m.Source = abs
	}
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "", "rw", "z", "Z", "cached", "delegated", "consistent", "default":
		case "ro":
			m.ReadOnly = true
		case "nocopy":
			m.NoCopy = true
		case "shared", "rshared", "slave", "rslave", "private", "rprivate":
			m.Options = append(m.Options, option)
		default:
			return m, invalidMount(s, fmt.Sprintf("invalid mode: %s", option))
		}
	}
	return checkedMount(s, m)
}

// mountFields are the keys of --mount; each says what a value does to the mount.
var mountFields = map[string]func(m *engine.Mount, value string) error{
	"type":             func(m *engine.Mount, v string) error { m.Kind = engine.MountKind(strings.ToLower(v)); return nil },
	"source":           func(m *engine.Mount, v string) error { m.Source = v; return nil },
	"target":           func(m *engine.Mount, v string) error { m.Target = v; return nil },
	"readonly":         func(m *engine.Mount, v string) error { return setBool(&m.ReadOnly, v) },
	"volume-nocopy":    func(m *engine.Mount, v string) error { return setBool(&m.NoCopy, v) },
	"bind-create-src":  func(m *engine.Mount, v string) error { return setBool(&m.CreateSource, v) },
	"bind-propagation": addOption(""),
	"tmpfs-size": func(m *engine.Mount, v string) error {
		n, err := units.RAMInBytes(v)
		m.Options = append(m.Options, fmt.Sprintf("size=%d", n))
		return err
	},
	"tmpfs-mode": func(m *engine.Mount, v string) error {
		_, err := strconv.ParseUint(v, 8, 32)
		m.Options = append(m.Options, "mode="+v)
		return err
	},
	"bind-recursive": func(m *engine.Mount, v string) error {
		switch v {
		case "enabled", "readonly", "writable":
			return nil
		case "disabled":
			m.Shallow = true
			return nil
		}
		return fmt.Errorf("%q is not enabled, disabled, writable or readonly", v)
	},
	"consistency": func(*engine.Mount, string) error { return nil },
}

func addOption(prefix string) func(*engine.Mount, string) error {
	return func(m *engine.Mount, v string) error {
		m.Options = append(m.Options, prefix+v)
		return nil
	}
}

// mountAliases are docker's other names of mountFields.
var mountAliases = map[string]string{"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}

// mountSwitches are the fields that may stand without a value.
var mountSwitches = map[string]bool{"readonly": true, "volume-nocopy": true, "bind-create-src": true}

func setBool(to *bool, value string) (err error) {
	switch value {
	case "1", "true":
		*to = true
	case "0", "false":
		*to = false
	default:
		err = fmt.Errorf("%q is not true, false, 1 or 0", value)
	}
	return err
}

// parseMount reads docker's --mount: one line of CSV, key=value in each field.
func parseMount(s string) (engine.Mount, error) {
	m := engine.Mount{Kind: engine.MountVolume}
	fields, err := csv.NewReader(strings.NewReader(strings.TrimSpace(s))).Read()
	if err != nil {
		return m, invalidMount(s, "want key=value fields separated by commas")
	}
	given := map[string]bool{}
	for _, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		key = strings.ToLower(key)
		if alias, ok := mountAliases[key]; ok {
			key = alias
		}
		set, known := mountFields[key]
		switch {
		case !known:
			return m, invalidMount(s, fmt.Sprintf("unknown option %q", field))
		case !hasValue && mountSwitches[key]:
			value = "true"
		case !hasValue:
			return m, invalidMount(s, fmt.Sprintf("invalid field %q must be a key=value pair", field))
		case value == "" || strings.TrimSpace(value) != value:
			return m, invalidMount(s, fmt.Sprintf("invalid value for %q: it is empty or begins or ends with a space", key))
		}
		if err := set(&m, value); err != nil {
			return m, invalidMount(s, fmt.Sprintf("invalid value for %s: %v", key, err))
		}
		given[key] = true
	}
	return kindOfMount(s, m, given)
}

// kindOfMount checks what only some types of mounts have.
func kindOfMount(s string, m engine.Mount, given map[string]bool) (engine.Mount, error) {
	switch m.Kind {
	case engine.MountBind, engine.MountVolume, engine.MountTmpfs:
	default:
		return m, invalidMount(s, fmt.Sprintf("type %q is not bind, volume or tmpfs", m.Kind))
	}
	for key := range given {
		kind, _, mixed := strings.Cut(key, "-")
		if mixed && kind != string(m.Kind) {
			return m, invalidMount(s, fmt.Sprintf("cannot mix '%s-*' options with mount type '%s'", kind, m.Kind))
		}
	}
	switch {
	case m.Kind == engine.MountTmpfs && m.Source != "":
		return m, invalidMount(s, "a tmpfs has no source")
	case m.Kind == engine.MountVolume && strings.ContainsAny(m.Source, "/~"):
		return m, invalidMount(s, fmt.Sprintf("%q is a path, not a volume's name; write type=bind", m.Source))
	case m.Kind == engine.MountBind && m.Source == "":
		return m, invalidMount(s, "field source must not be empty")
	case m.Kind == engine.MountBind:
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return m, invalidMount(s, err.Error())
		}
		m.Source = abs
	}
	return checkedMount(s, m)
}

// parseTmpfs reads docker's --tmpfs: TARGET[:OPTIONS].
func parseTmpfs(s string) (engine.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	m := engine.Mount{Kind: engine.MountTmpfs, Target: target}
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "", "rw":
		case "ro":
			m.ReadOnly = true
		default:
			m.Options = append(m.Options, option)
		}
	}
	return checkedMount(s, m)
}

// checkedMount checks the place in the container, which all mounts have.
func checkedMount(s string, m engine.Mount) (engine.Mount, error) {
	if m.Target == "" {
		return m, invalidMount(s, "field target must not be empty")
	}
	if !path.IsAbs(m.Target) {
		return m, invalidMount(s, fmt.Sprintf("mount path must be absolute: %q", m.Target))
	}
	m.Target = path.Clean(m.Target)
	if m.Target == "/" {
		return m, invalidMount(s, "destination can't be '/'")
	}
	return m, nil
}

func invalidMount(s, why string) error {
	return &usageError{fmt.Sprintf("invalid mount %q: %s", s, why)}
}

func expandHome(p string) string {
	if p == "~" || strings.HasPrefix(p, "~/") {
		if home, err := os.UserHomeDir(); err == nil {
			return home + p[1:]
		}
	}
	return p
}
