package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/docker/go-units"
)

const (
	systemDaemonJSON   = "/etc/docker/daemon.json"
	maxDaemonJSONBytes = 1 << 20
)

// gcConfig is the part of dockerd's daemon.json that bounds its build cache.
// https://docs.docker.com/build/cache/garbage-collection/
type gcConfig struct {
	Builder struct {
		GC struct {
			Enabled             *bool  `json:"enabled"`
			DefaultMaxUsedSpace string `json:"defaultMaxUsedSpace"`
			DefaultMinFreeSpace string `json:"defaultMinFreeSpace"`
			// DefaultKeepStorage is the name that the first had before Docker 28.
			DefaultKeepStorage string `json:"defaultKeepStorage"`
		} `json:"gc"`
	} `json:"builder"`
}

// A cacheBudget is what daemon.json says of the cache.
type cacheBudget struct {
	maxBytes, minFreeBytes int64
}

// cacheBudget reads builder.gc. What cannot be read is told, if the user named
// the file or wrote something den does not understand.
func (o Options) cacheBudget() cacheBudget {
	file, named := o.DaemonJSON, true
	if file == "" {
		file, named = systemDaemonJSON, false
	}
	b, err := readCacheBudget(file)
	if err != nil && !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return cacheBudget{}
	}
	if err != nil {
		o.Notice(fmt.Sprintf("builder.gc in %s is ignored: %v", file, err))
		return cacheBudget{}
	}
	return b
}

func readCacheBudget(file string) (b cacheBudget, err error) {
	f, err := os.Open(file)
	if err != nil {
		return b, err
	}
	defer f.Close()
	var c gcConfig
	if err := json.NewDecoder(io.LimitReader(f, maxDaemonJSONBytes)).Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return b, nil // an empty file says nothing
		}
		return b, err
	}
	gc := c.Builder.GC
	if gc.Enabled != nil && !*gc.Enabled {
		return b, nil
	}
	most := gc.DefaultMaxUsedSpace
	if most == "" {
		most = gc.DefaultKeepStorage
	}
	if b.maxBytes, err = bytesOf(most); err != nil {
		return cacheBudget{}, err
	}
	if b.minFreeBytes, err = bytesOf(gc.DefaultMinFreeSpace); err != nil {
		return cacheBudget{}, err
	}
	return b, nil
}

// bytesOf reads a size as dockerd does: "20GB" is 20 GiB, empty is none.
func bytesOf(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	return units.RAMInBytes(s)
}
