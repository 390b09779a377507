package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/oci"
	"den/internal/sys"
)

// A Volume is a volume of this engine.
type Volume struct {
	Name string
	// Path is where its files are.
	Path    string
	Created time.Time
	Labels  map[string]string
	// Options are the local driver's: type, device, o.
	Options map[string]string
	// Anonymous volumes were made without a name.
	Anonymous bool
}

// A VolumeRequest asks for a volume; without a name for an anonymous one.
type VolumeRequest struct {
	Name            string
	Labels, Options map[string]string
}

// volumeFile, beside a volume's files, says what they are. Volumes of den run have none.
const volumeFile = "volume.json"

type volumeMeta struct {
	Created   time.Time         `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"`
}

// check says what this den can do of docker's local driver.
func (m *volumeMeta) check() error {
	for key := range m.Options {
		switch key {
		case "type", "device", "o":
		default:
			return invalid("invalid option: %q; the local driver has type, device and o", key)
		}
	}
	device, options := m.Options["device"], m.Options["o"]
	switch kind := m.Options["type"]; {
	case kind == "tmpfs" && device == "":
		return invalid("missing required option: %q", "device")
	case kind == "tmpfs":
		return nil
	case kind == "" && device == "" && options == "":
		return nil
	case (kind == "none" || kind == "bind" || kind == "") && hasOption(options, "bind", "rbind"):
		if !filepath.IsAbs(device) {
			return invalid("missing device in volume options: a bind needs device=/PATH")
		}
		return nil
	default:
		return unsupported("volume of type %q: den has plain volumes, binds (o=bind) and tmpfs", kind)
	}
}

func hasOption(options string, names ...string) bool {
	return slices.ContainsFunc(strings.Split(options, ","), func(o string) bool { return slices.Contains(names, o) })
}

// makeVolume makes a volume that is not there yet.
func (e *Engine) makeVolume(ctx context.Context, name string, m volumeMeta) (fresh bool, err error) {
	if err := m.check(); err != nil {
		return false, err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return false, fmt.Errorf("volume %s: %w", name, err)
	}
	_, hold, fresh, err := e.Store.MakeVolume(ctx, name, map[string][]byte{volumeFile: b})
	if err != nil {
		return false, err
	}
	return fresh, hold.Close()
}

func readVolumeMeta(dir string) (m volumeMeta, err error) {
	b, err := readBounded(filepath.Join(filepath.Dir(dir), volumeFile), maxRecordBytes)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if errors.Is(err, fs.ErrNotExist) {
		fi, err := os.Stat(dir)
		if err != nil {
			return m, err
		}
		return volumeMeta{Created: fi.ModTime().UTC()}, nil
	}
	return m, err
}

// CreateVolume makes a volume, or returns the one that has the name.
func (e *Engine) CreateVolume(ctx context.Context, r VolumeRequest) (*Volume, error) {
	m := volumeMeta{Created: time.Now().UTC(), Labels: r.Labels, Options: r.Options, Anonymous: r.Name == ""}
	if r.Name == "" {
		id, err := newID()
		if err != nil {
			return nil, err
		}
		r.Name = id
	}
	fresh, err := e.makeVolume(ctx, r.Name, m)
	if err != nil {
		return nil, err
	}
	if fresh {
		e.volumeEvent(r.Name, "create", nil)
	}
	return e.Volume(ctx, r.Name)
}

// Volume describes a volume.
func (e *Engine) Volume(ctx context.Context, name string) (*Volume, error) {
	dir, hold, _, err := e.Store.Volume(ctx, name, false)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return nil, notFound("get %s: no such volume", name)
	}
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	m, err := readVolumeMeta(dir)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	return &Volume{Name: name, Path: dir, Created: m.Created, Labels: m.Labels, Options: m.Options, Anonymous: m.Anonymous}, nil
}

// volumePath is where a volume's files are; empty if there is none.
func (e *Engine) volumePath(name string) string {
	dir, hold, _, err := e.Store.Volume(context.Background(), name, false)
	if err != nil {
		return ""
	}
	hold.Close()
	return dir
}

// Volumes describes all volumes, by name.
func (e *Engine) Volumes(ctx context.Context) ([]*Volume, error) {
	names, err := e.Store.Volumes()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []*Volume
	for _, name := range names {
		v, err := e.Volume(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// VolumeUsers maps the names of volumes to the ids of the containers that have them.
func (e *Engine) VolumeUsers(context.Context) (map[string][]string, error) {
	list, err := e.List()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, s := range list {
		for _, v := range s.Volumes {
			users[v] = append(users[v], s.ID)
		}
	}
	return users, nil
}

// RemoveVolume removes a volume that no container has.
func (e *Engine) RemoveVolume(ctx context.Context, name string) error {
	if _, err := e.Volume(ctx, name); err != nil {
		return err
	}
	users, err := e.VolumeUsers(ctx)
	if err != nil {
		return err
	}
	if ids := users[name]; len(ids) > 0 {
		return conflict("remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	err = e.Store.RemoveVolume(name)
	if errdefs.IsFailedPrecondition(err) {
		return conflict("remove %s: volume is in use", name)
	}
	if err != nil {
		return err
	}
	e.volumeEvent(name, "destroy", nil)
	return nil
}

// PruneVolumes removes the volumes that no container has and that keep, if not nil,
// says nothing against.
func (e *Engine) PruneVolumes(ctx context.Context, keep func(*Volume) bool) (Pruned, error) {
	all, err := e.Volumes(ctx)
	if err != nil {
		return Pruned{}, err
	}
	users, err := e.VolumeUsers(ctx)
	if err != nil {
		return Pruned{}, err
	}
	var p Pruned
	var errs []error
	for _, v := range all {
		if len(users[v.Name]) > 0 || keep != nil && keep(v) {
			continue
		}
		size, err := VolumeBytes(v.Path)
		if err == nil {
			err = e.Store.RemoveVolume(v.Name)
		}
		switch {
		case err == nil:
			p.Names, p.Bytes = append(p.Names, v.Name), p.Bytes+size
			e.volumeEvent(v.Name, "destroy", nil)
		case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err), errors.Is(err, fs.ErrNotExist): // somebody was faster
		default:
			errs = append(errs, err)
		}
	}
	if len(p.Names) > 0 {
		e.Emit(Event{Type: "volume", Action: "prune", Attributes: map[string]string{"reclaimed": fmt.Sprint(p.Bytes)}})
	}
	return p, errors.Join(errs...)
}

// Pruned is what a prune removed.
type Pruned struct {
	Names []string // or ids
	Bytes int64
}

// oci is the mount of a volume, as its options say.
func (v *attachedVolume) oci() (oci.Mount, error) {
	m, err := readVolumeMeta(v.dir)
	if err != nil {
		return oci.Mount{}, fmt.Errorf("volume %s: %w", v.name, err)
	}
	source := v.dir
	if device := m.Options["device"]; hasOption(m.Options["o"], "bind", "rbind") {
		if _, err := os.Stat(device); err != nil {
			return oci.Mount{}, invalid("failed to mount local volume: mount %s: %v", device, err)
		}
		source = device
	}
	if v.mount.Subpath != "" {
		if source, err = beneath(source, v.mount.Subpath); err != nil {
			return oci.Mount{}, invalid("cannot access path %s of volume %s: %v", v.mount.Subpath, v.name, err)
		}
	}
	out := bindMount(v.mount, source)
	if m.Options["type"] == "tmpfs" {
		out = oci.Mount{Type: "tmpfs", Source: "tmpfs", Target: v.mount.Target, Options: append([]string{access(v.mount)}, splitOptions(m.Options["o"])...)}
	}
	out.Hold = []*os.File{v.hold}
	return out, nil
}

func splitOptions(o string) []string {
	return slices.DeleteFunc(strings.Split(o, ","), func(s string) bool { return s == "" })
}

// beneath is the path of sub in dir, which no symbolic link leads out of.
func beneath(dir, sub string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.Open(filepath.Clean(strings.TrimPrefix(sub, "/")))
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// VolumeBytes sums the sizes of the files in a directory, as far as it can be read.
func VolumeBytes(dir string) (sum int64, err error) {
	err = sys.WalkChanging(dir, func(info fs.FileInfo) {
		if info.Mode().IsRegular() {
			sum += info.Size()
		}
	})
	return sum, err
}
