package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/sys"
)

// A directory of networks:
//
//	lock                         who changes records of networks, or gives addresses, has it
//	<id>/network.json            a Network
//	<id>/lock                    who makes the driver change this network has it
//	<id>/endpoints/<container>   an Endpoint
//	<id>/zone.json               the Zone as told last
//	.gone-<id>                   a network that is being removed
//
// <id>/lock is taken before lock, and never two networks' at a time. The rest
// of <id> is the driver's.
const (
	lockFile     = "lock"
	networkFile  = "network.json"
	zoneFile     = "zone.json"
	endpointsDir = "endpoints"
	gonePrefix   = ".gone-"
)

// maxRecord is more than any record, in bytes.
const maxRecord = 16 << 20

// locked opens and locks path; it is an error of fs.ErrNotExist if path was
// removed, or replaced, before the lock was there.
func locked(path string, create int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|create, 0o600)
	if err != nil {
		return nil, err
	}
	err = sys.Flock(f, unix.LOCK_EX)
	if err == nil {
		var same bool
		if same, err = sys.SameInode(f, path); err == nil && !same {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockRecords keeps others from changing which networks there are and who has
// which address; closing the file ends that.
func (ns *Networks) lockRecords() (*os.File, error) {
	f, err := locked(filepath.Join(ns.dir, lockFile), os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("lock networks: %w", err)
	}
	return f, nil
}

// lockNetwork keeps others from telling the driver about network id.
func (ns *Networks) lockNetwork(id string) (*os.File, error) {
	f, err := locked(filepath.Join(ns.dir, id, lockFile), os.O_CREATE)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNotFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("lock network %s: %w", id, err)
	}
	return f, nil
}

// readJSON reads a record. An empty file is what a power cut leaves of one that
// was written just before: fs.ErrNotExist.
func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if len(b) == 0 {
		return &os.PathError{Op: "read", Path: path, Err: os.ErrNotExist}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, b, 0o600)
}

// ReadNetwork reads the record of the network in dir, a directory of one network.
func ReadNetwork(dir string) (*Network, error) {
	n := &Network{}
	if err := readJSON(filepath.Join(dir, networkFile), n); err != nil {
		return nil, err
	}
	return n, nil
}

// ReadEndpoints reads those of the network in dir, by container.
func ReadEndpoints(dir string) ([]Endpoint, error) {
	names, err := os.ReadDir(filepath.Join(dir, endpointsDir))
	if err != nil {
		return nil, err
	}
	var es []Endpoint
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".") {
			continue
		}
		var e Endpoint
		err := readJSON(filepath.Join(dir, endpointsDir, name.Name()), &e)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		es = append(es, e)
	}
	return es, nil
}

// ReadZone reads what the network in dir resolves.
func ReadZone(dir string) (*Zone, error) {
	z := &Zone{}
	if err := readJSON(filepath.Join(dir, zoneFile), z); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return z, nil
}

// all reads the records of all networks, oldest first.
func (ns *Networks) all() ([]*Network, error) {
	names, err := os.ReadDir(ns.dir)
	if err != nil {
		return nil, err
	}
	var all []*Network
	for _, name := range names {
		if !name.IsDir() || strings.HasPrefix(name.Name(), ".") {
			continue
		}
		n, err := ReadNetwork(filepath.Join(ns.dir, name.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // is being removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	slices.SortStableFunc(all, func(a, b *Network) int { return a.Created.Compare(b.Created) })
	return all, nil
}

func (ns *Networks) network(id string) string { return filepath.Join(ns.dir, id) }

func (ns *Networks) endpointPath(network, container string) string {
	return filepath.Join(ns.dir, network, endpointsDir, container)
}

// endpointsOf reads the endpoints of one container, the one with the default route first.
func (ns *Networks) endpointsOf(container string) ([]Endpoint, error) {
	if err := checkContainer(container); err != nil {
		return nil, err
	}
	all, err := ns.all()
	if err != nil {
		return nil, err
	}
	var es []Endpoint
	for _, n := range all {
		var e Endpoint
		err := readJSON(ns.endpointPath(n.ID, container), &e)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		es = append(es, e)
	}
	slices.SortStableFunc(es, func(a, b Endpoint) int {
		if a.Gateway != b.Gateway {
			if a.Gateway {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Device, b.Device)
	})
	return es, nil
}

// checkContainer refuses what is no name of a file.
func checkContainer(id string) error {
	if id == "" || len(id) > 128 || strings.HasPrefix(id, ".") || strings.ContainsAny(id, "/\x00") {
		return errInvalid("container id %q: want a name without '/' that does not begin with '.'", id)
	}
	return nil
}

// forget removes a file that may be gone.
func forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
