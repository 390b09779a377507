package engine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"den/internal/oci"
)

// mounts are the container's own: names, binds, tmpfs and volumes, in the order
// in which one may lie in another.
func (c *container) mounts(ctx context.Context) ([]oci.Mount, error) {
	out, err := c.nameFiles(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range c.request.Mounts {
		// A name that the user mounts something on is the user's.
		out = slices.DeleteFunc(out, func(o oci.Mount) bool { return o.Target == m.Target })
		switch m.Kind {
		case MountBind:
			if err := bindSource(m); err != nil {
				return nil, err
			}
			out = append(out, bindMount(m, m.Source))
		case MountTmpfs:
			options := append([]string{"nosuid", "nodev", "noexec", access(m)}, m.Options...)
			out = append(out, oci.Mount{Type: "tmpfs", Source: "tmpfs", Target: m.Target, Options: options})
		}
	}
	for _, v := range c.volumes {
		b, err := v.oci()
		if err != nil {
			return nil, err
		}
		// A name that a volume is mounted on is the user's, too.
		out = slices.DeleteFunc(out, func(o oci.Mount) bool { return o.Target == v.mount.Target })
		out = append(out, b)
	}
	sortByDepth(out)
	return out, nil
}

func access(m Mount) string {
	if m.ReadOnly {
		return "ro"
	}
	return "rw"
}

func bindMount(m Mount, source string) oci.Mount {
	options := []string{"rbind", access(m)}
	if m.ReadOnly {
		// What is mounted below is read-only, too (docker's default since 25).
		options[1] = "rro"
	}
	if m.ReadOnly && m.ShallowReadOnly {
		options[1] = "ro"
	}
	if m.Shallow {
		options[0] = "bind"
	}
	return oci.Mount{Type: "bind", Source: source, Target: m.Target, Options: append(options, m.Options...)}
}

func bindSource(m Mount) error {
	_, err := os.Stat(m.Source)
	if err == nil {
		return nil
	}
	if os.IsNotExist(err) && m.CreateSource {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fmt.Errorf("bind %s: %w", m.Source, err)
		}
		return nil
	}
	if os.IsNotExist(err) {
		return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
	}
	return fmt.Errorf("bind: %w", err)
}

// sortByDepth puts a mount before those that lie below it and keeps the order
// of others.
func sortByDepth(mounts []oci.Mount) {
	slices.SortStableFunc(mounts, func(a, b oci.Mount) int {
		return cmp.Compare(strings.Count(path.Clean(a.Target), "/"), strings.Count(path.Clean(b.Target), "/"))
	})
}
