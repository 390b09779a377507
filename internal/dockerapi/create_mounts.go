package dockerapi

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"den/internal/engine"
)

// volumeDriver is the one driver of volumes that there is.
const volumeDriver = "local"

func noVolumeDriver(name string) error {
	return notFound("error looking up volume plugin %s: plugin %q not found", name, name)
}

// mounts translates Binds, Mounts, Tmpfs and Volumes, of which the first wins where
// two have one target, as in docker, but for Mounts, which must not.
func (s *Server) mounts(b *createBody, r *engine.CreateRequest) error {
	taken := map[string]bool{}
	for _, bind := range b.HostConfig.Binds {
		m, err := parseBind(bind)
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, m)
		taken[path.Clean(m.Target)] = true
	}
	for i := range b.HostConfig.Mounts {
		m, err := translateMount(&b.HostConfig.Mounts[i])
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, m)
		taken[path.Clean(m.Target)] = true
	}
	for _, target := range slices.Sorted(maps.Keys(b.HostConfig.Tmpfs)) {
		m := engine.Mount{Kind: engine.MountTmpfs, Target: target}
		for option := range strings.SplitSeq(b.HostConfig.Tmpfs[target], ",") {
			switch option {
			case "", "rw":
			case "ro":
				m.ReadOnly = true
			default:
				m.Options = append(m.Options, option)
			}
		}
		r.Mounts = append(r.Mounts, m)
		taken[path.Clean(target)] = true
	}
	for _, target := range slices.Sorted(maps.Keys(b.Volumes)) {
		if target == "" || taken[path.Clean(target)] {
			continue
		}
		if !path.IsAbs(target) { // clients send -v's whole value here, too
			m, err := parseBind(target)
			if err != nil {
				return err
			}
			r.Mounts = append(r.Mounts, m)
			continue
		}
		r.Mounts = append(r.Mounts, engine.Mount{Kind: engine.MountVolume, Target: target})
	}
	for i := range r.Mounts {
		s.ownSocket(&r.Mounts[i])
	}
	r.VolumesFrom = b.HostConfig.VolumesFrom
	return nil
}

// ownSocket makes a bind of docker's socket one of the socket that this server
// listens on, wherever that is: who asks for it wants to speak to this server.
func (s *Server) ownSocket(m *engine.Mount) {
	if m.Kind != engine.MountBind || s.SocketPath == "" {
		return
	}
	switch path.Clean(m.Source) {
	case "/var/run/docker.sock", "/run/docker.sock", s.SocketPath:
		m.Source, m.CreateSource = s.SocketPath, false
	}
}

// parseBind reads docker's [SOURCE:]TARGET[:OPTIONS].
func parseBind(s string) (engine.Mount, error) {
	m := engine.Mount{Kind: engine.MountVolume}
	var options string
	parts := strings.Split(s, ":")
	if slices.Contains(parts, "") || len(parts) > 3 {
		return m, invalid("invalid volume specification: '%s'", s)
	}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target, options = parts[0], parts[1], parts[2]
	}
	if path.IsAbs(m.Source) {
		m.Kind, m.CreateSource = engine.MountBind, true
		m.Source = path.Clean(m.Source)
	}
	if err := checkTarget(m.Kind, s, m.Target); err != nil {
		return m, err
	}
	if m.Kind == engine.MountVolume && m.Source != "" {
		if err := checkVolumeName(m.Source); err != nil {
			return m, err
		}
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
			return m, invalid("invalid volume specification: '%s': invalid mode: %s", s, option)
		}
	}
	return m, nil
}

func checkTarget(kind engine.MountKind, spec, target string) error {
	switch {
	case !path.IsAbs(target):
		return invalid("invalid volume specification: '%s': invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", spec, kind, target)
	case path.Clean(target) == "/":
		return invalid("invalid volume specification: '%s': invalid mount config for type %q: invalid specification: destination can't be '/'", spec, kind)
	}
	return nil
}

// volumeName is docker's rule for names of local volumes.
const volumeName = `[a-zA-Z0-9][a-zA-Z0-9_.-]`

// checkVolumeName refuses what could lead out of the volumes' directory, in docker's words.
func checkVolumeName(name string) error {
	if len(name) == 1 {
		return invalid("create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	if ok, _ := regexp.MatchString("^"+volumeName+"+$", name); !ok {
		return invalid("create %s: %q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", name, name, volumeName)
	}
	return nil
}

// translateMount translates --mount.
func translateMount(in *mount.Mount) (engine.Mount, error) {
	m := engine.Mount{Kind: engine.MountKind(in.Type), Source: in.Source, Target: in.Target, ReadOnly: in.ReadOnly}
	fail := func(format string, a ...any) (engine.Mount, error) {
		return m, invalid("invalid mount config for type %q: %s", in.Type, fmt.Sprintf(format, a...))
	}
	switch {
	case in.Target == "":
		return fail("field Target must not be empty")
	case !path.IsAbs(in.Target):
		return fail("invalid mount path: '%s' mount path must be absolute", in.Target)
	case path.Clean(in.Target) == "/":
		return fail("invalid specification: destination can't be '/'")
	case in.BindOptions != nil && in.Type != mount.TypeBind:
		return fail("field BindOptions must not be specified")
	case in.TmpfsOptions != nil && in.Type != mount.TypeTmpfs:
		return fail("field TmpfsOptions must not be specified")
	case in.VolumeOptions != nil && in.Type != mount.TypeVolume:
		return fail("field VolumeOptions must not be specified")
	case in.ImageOptions != nil && in.Type != mount.TypeImage:
		return fail("field ImageOptions must not be specified")
	case in.ClusterOptions != nil && in.Type != mount.TypeCluster:
		return fail("field ClusterOptions must not be specified")
	}
	switch in.Type {
	case mount.TypeBind:
		switch {
		case in.Source == "":
			return fail("field Source must not be empty")
		case !path.IsAbs(in.Source):
			return fail("invalid mount path: '%s' mount path must be absolute", in.Source)
		}
		m.Source = path.Clean(in.Source)
		if o := in.BindOptions; o != nil {
			if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
				return fail("invalid propagation mode: %s", o.Propagation)
			}
			m.Shallow, m.CreateSource, m.ShallowReadOnly = o.NonRecursive, o.CreateMountpoint, o.ReadOnlyNonRecursive
			if err := checkReadOnly(in); err != nil {
				return fail("%v", err)
			}
			if o.Propagation != "" && o.Propagation != mount.PropagationRPrivate {
				m.Options = append(m.Options, string(o.Propagation))
			}
		}
	case mount.TypeVolume:
		return volumeMount(in, m)
	case mount.TypeTmpfs:
		if in.Source != "" {
			return fail("field Source must not be specified")
		}
		m.Options = tmpfsOptions(in.TmpfsOptions)
	case mount.TypeImage:
		return fail("den does not mount images into containers: COPY --from= in a Dockerfile takes files out of one")
	case mount.TypeCluster, mount.TypeNamedPipe:
		return fail("there are none in den")
	default:
		return m, invalid("mount type unknown: %q", in.Type)
	}
	return m, nil
}

// checkReadOnly is docker's: den makes what is below a read-only bind read-only wherever it is not told
// otherwise, so that forcing it changes nothing.
func checkReadOnly(in *mount.Mount) error {
	o := in.BindOptions
	switch {
	case o.ReadOnlyNonRecursive && !in.ReadOnly:
		return errors.New("mount must be read-only for ReadOnlyNonRecursive")
	case o.ReadOnlyForceRecursive && !in.ReadOnly:
		return errors.New("mount must be read-only for ReadOnlyForceRecursive")
	case o.ReadOnlyForceRecursive && o.ReadOnlyNonRecursive:
		return errors.New("ReadOnlyForceRecursive must not be combined with ReadOnlyNonRecursive")
	case o.ReadOnlyForceRecursive && o.Propagation != "" && o.Propagation != mount.PropagationRPrivate:
		return errors.New("mount must have rprivate propagation for ReadOnlyForceRecursive")
	}
	return nil
}

func volumeMount(in *mount.Mount, m engine.Mount) (engine.Mount, error) {
	if in.Source != "" {
		if err := checkVolumeName(in.Source); err != nil {
			return m, err
		}
	}
	o := in.VolumeOptions
	if o == nil {
		return m, nil
	}
	m.NoCopy, m.Labels, m.Subpath = o.NoCopy, o.Labels, o.Subpath
	if d := o.DriverConfig; d != nil {
		if d.Name != "" && d.Name != volumeDriver {
			return m, noVolumeDriver(d.Name)
		}
		m.DriverOptions = d.Options
	}
	return m, nil
}

func tmpfsOptions(o *mount.TmpfsOptions) (options []string) {
	if o == nil {
		return nil
	}
	if o.SizeBytes > 0 {
		options = append(options, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		options = append(options, "mode="+strconv.FormatUint(uint64(o.Mode), 8))
	}
	for _, pair := range o.Options {
		options = append(options, strings.Join(pair, "="))
	}
	return options
}

// fillLog fills in what the server's own configuration says of logs, as dockerd does.
func (s *Server) fillLog(l *container.LogConfig) {
	usual := cmp.Or(s.DefaultLog.Type, "json-file")
	if l.Type == "" {
		l.Type = usual
	}
	options := map[string]string{}
	if l.Type == usual {
		maps.Copy(options, s.DefaultLog.Config)
	}
	maps.Copy(options, l.Config)
	l.Config = options
}

// CheckLog says what is wrong with a log driver and its options.
func CheckLog(l container.LogConfig) error {
	_, err := logConfig(l)
	return err
}

// logConfig translates a log driver and its options.
func logConfig(l container.LogConfig) (engine.LogConfig, error) {
	out := engine.LogConfig{Driver: l.Type}
	switch l.Type {
	case "json-file", "local", "none":
	default:
		return out, invalid("logger: no log driver named '%s' is registered: den has json-file, local and none", l.Type)
	}
	for _, key := range slices.Sorted(maps.Keys(l.Config)) {
		if err := logOption(&out, key, l.Config[key]); err != nil {
			return out, err
		}
	}
	return out, nil
}
