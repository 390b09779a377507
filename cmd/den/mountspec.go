package main

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"den/internal/engine"
)

// parseVolume reads docker's -v: [SOURCE:]TARGET[:OPTIONS].
func parseVolume(s string) (engine.Mount, error) {
	parts := strings.Split(s, ":")
	m := engine.Mount{Kind: engine.MountVolume}
	var options string
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target, options = parts[0], parts[1], parts[2]
	default:
		return m, invalidMount(s, "want [SOURCE:]TARGET[:OPTIONS]")
	}
	if !path.IsAbs(m.Target) {
		return m, invalidMount(s, "the path inside the container must be absolute")
	}
	if len(parts) > 1 && m.Source == "" {
		return m, invalidMount(s, "the source is empty")
	}
	if isPath(m.Source) {
		m.Kind, m.CreateSource = engine.MountBind, true
		abs, err := filepath.Abs(expandHome(m.Source))
		if err != nil {
			return m, invalidMount(s, err.Error())
		}
		m.Source = abs
	}
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "", "rw", "z", "Z", "cached", "delegated", "consistent":
		case "ro":
			m.ReadOnly = true
		case "nocopy":
			m.NoCopy = true
		case "shared", "rshared", "slave", "rslave", "private", "rprivate":
			m.Options = append(m.Options, option)
		default:
			return m, invalidMount(s, fmt.Sprintf("unknown option %q", option))
		}
	}
	m.Target = path.Clean(m.Target)
	return m, nil
}

// isPath tells a bind's path from a volume's name, as docker does.
func isPath(source string) bool {
	return strings.HasPrefix(source, "/") || strings.HasPrefix(source, ".") || strings.HasPrefix(source, "~")
}

// parseMount reads docker's --mount: type=...,source=...,target=...
func parseMount(s string) (engine.Mount, error) {
	m := engine.Mount{Kind: engine.MountVolume}
	for field := range strings.SplitSeq(s, ",") {
		key, value, hasValue := strings.Cut(field, "=")
		switch key {
		case "type":
			m.Kind = engine.MountKind(value)
		case "source", "src":
			m.Source = value
		case "target", "dst", "destination":
			m.Target = value
		case "readonly", "ro":
			m.ReadOnly = !hasValue || value == "true" || value == "1"
		case "volume-nocopy":
			m.NoCopy = !hasValue || value == "true" || value == "1"
		case "tmpfs-size":
			m.Options = append(m.Options, "size="+value)
		case "tmpfs-mode":
			m.Options = append(m.Options, "mode="+value)
		case "bind-propagation":
			m.Options = append(m.Options, value)
		case "consistency", "bind-recursive":
		default:
			return m, invalidMount(s, fmt.Sprintf("unknown key %q", key))
		}
	}
	switch m.Kind {
	case engine.MountBind:
		if m.Source == "" {
			return m, invalidMount(s, "a bind wants a source")
		}
		abs, err := filepath.Abs(expandHome(m.Source))
		if err != nil {
			return m, invalidMount(s, err.Error())
		}
		m.Source = abs
	case engine.MountVolume, engine.MountTmpfs:
	default:
		return m, invalidMount(s, fmt.Sprintf("type %q is not bind, volume or tmpfs", m.Kind))
	}
	if !path.IsAbs(m.Target) {
		return m, invalidMount(s, "target must be an absolute path")
	}
	m.Target = path.Clean(m.Target)
	return m, nil
}

// parseTmpfs reads docker's --tmpfs: TARGET[:OPTIONS].
func parseTmpfs(s string) (engine.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	m := engine.Mount{Kind: engine.MountTmpfs, Target: path.Clean(target)}
	if !path.IsAbs(target) {
		return m, invalidMount(s, "the path inside the container must be absolute")
	}
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "", "rw":
		case "ro":
			m.ReadOnly = true
		default:
			m.Options = append(m.Options, option)
		}
	}
	return m, nil
}

func invalidMount(s, why string) error {
	return &usageError{fmt.Sprintf("invalid mount %q: %s", s, why)}
}
