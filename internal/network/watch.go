package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Mortal is a Driver whose networks have something that can die by itself.
type Mortal interface {
	Driver
	// Alive says that nothing of n, which is up, has died.
	Alive(n *Network) bool
}

// watchPeriod is how long names and ports may be away after something of a network
// died. Looking costs two system calls for each network.
const watchPeriod = 2 * time.Second

// Watch brings back what dies of networks that have endpoints, until ctx ends.
// report is told what cannot be brought back; it is tried again.
func (ns *Networks) Watch(ctx context.Context, report func(error)) {
	d, ok := ns.driver.(Mortal)
	if !ok {
		return
	}
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := ns.revive(ctx, d); err != nil && ctx.Err() == nil {
			report(err)
		}
	}
}

func (ns *Networks) revive(ctx context.Context, d Mortal) error {
	dirs, err := os.ReadDir(ns.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if !dir.IsDir() || strings.HasPrefix(dir.Name(), ".") || !occupied(ns.network(dir.Name())) {
			continue
		}
		n, err := ReadNetwork(ns.network(dir.Name()))
		if errors.Is(err, os.ErrNotExist) || err == nil && d.Alive(n) {
			continue // it is being removed, or well
		}
		if err == nil {
			err = ns.restore(ctx, n) // looks again, under the network's lock
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// occupied says whether the network in dir has endpoints, without reading what they are.
func occupied(dir string) bool {
	names, err := os.ReadDir(filepath.Join(dir, endpointsDir))
	return err == nil && len(names) > 0
}
