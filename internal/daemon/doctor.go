package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/dockerd"
	"den/internal/doctor"
	"den/internal/durable"
	"den/internal/network"
	"den/internal/probe"
	"den/internal/registry"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/socket"
	"den/internal/store"
)

// How long doctor waits for what may hang. It is to end within a second.
const (
	doctorRegistry = 500 * time.Millisecond
	doctorStore    = 500 * time.Millisecond
	doctorSentry   = 600 * time.Millisecond
	doctorSocket   = 500 * time.Millisecond
	// maxPlaces is how many registries are asked.
	maxPlaces = 16
)

// Examine looks at everything that den depends on, at the same time, and changes
// nothing. It works where nothing else does. registries are asked besides those of the
// configuration; an error is one of the options.
func Examine(ctx context.Context, o Options, registries []string) (doctor.Report, error) {
	o.Notice = nil // the report says it
	o = withDefaults(o)
	client, err := Registry(o)
	if err != nil {
		return doctor.Report{}, err
	}
	places, err := placesToAsk(client, registries)
	if err != nil {
		return doctor.Report{}, err
	}
	root, b, backed := place(o)
	if b != nil && backed == nil && !b.Mounted() {
		backed = sandbox.Explain(probe.Confinement(), b.Enter(os.Args, os.Environ())) // starts den again, with the image mounted
	}
	in := doctor.Input{Version: o.Version, Isolation: isolation(o), Registries: make([]registry.Reach, len(places)), Limits: probe.ReadLimits()}
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, doctorRegistry, fmt.Errorf("no answer within %s", doctorRegistry))
			defer cancel()
			in.Registries[i] = client.Reach(ctx, p)
		})
	}
	wg.Go(func() { in.Store = examineStore(ctx, o, root, backed) })
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, doctorSentry)
		defer cancel()
		s := look(ctx, o)
		if t := s.tried(ctx, o, true); ctx.Err() == nil {
			s = t // else it is taken to run, as it is before every build
		}
		in.Facts, in.Choice, in.ChoiceErr = s.Facts, s.Choice, s.Err
		in.Networks = tryNetworks(ctx, in)
	})
	wg.Go(func() { in.Serve = trySocket(ctx) })
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return doctor.Report{}, err
	}
	in.Now = time.Now()
	in.Storage, in.Network = storage(in, o), chosenNetwork(in)
	return doctor.Examine(in), nil
}

// placesToAsk are the registries that were named, and then those of the configuration.
func placesToAsk(client *registry.Client, named []string) ([]registry.Place, error) {
	var places []registry.Place
	add := func(p registry.Place) {
		if !slices.ContainsFunc(places, func(q registry.Place) bool { return q.Host == p.Host }) {
			places = append(places, p)
		}
	}
	for _, name := range named {
		p, err := registry.NamedPlace(name)
		if err != nil {
			return nil, err
		}
		add(p)
	}
	for _, p := range client.Places() {
		add(p)
	}
	return places[:min(len(places), maxPlaces)], nil
}

// examineStore opens a store that is there, as every command does, and makes none.
// backed says why the image that it lies on is not to be had.
func examineStore(ctx context.Context, o Options, root string, backed error) doctor.Store {
	s := doctor.Store{Root: root, OfRoot: cmp.Or(o.StoreRoot, os.Getenv("DEN_STORE"), store.SystemRoot), Disk: probe.LookAtDisk(root), Err: backed}
	if s.Err != nil {
		return s
	}
	if s.Look, s.Err = store.LookAt(s.Root); s.Err != nil {
		return s
	}
	if !s.Exists {
		if s.Disk.Err != nil {
			s.Err = fmt.Errorf("no store can be made in %s: %w; set DEN_STORE to a directory that can be written, best on a volume", s.Root, s.Disk.Err)
		}
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, doctorStore)
	defer cancel()
	opened, err := store.Open(ctx, s.Root, store.Options{EngineDir: o.DataRoot, Bases: o.BaseStores, Durability: durable.Mode(o.Durability)})
	switch {
	case err == nil:
		s.Err = opened.Close()
	case ctx.Err() != nil:
		s.Slow = fmt.Sprintf("it did not open within %s: the machine is busy, or a process checks the store after a crash", doctorStore)
	default:
		s.Err = err
	}
	return s
}

// storage is the driver that choose would choose.
func storage(in doctor.Input, o Options) doctor.Chosen {
	if in.ChoiceErr != nil {
		return doctor.Chosen{Name: "none", Why: "none: nothing can be run that needs a root file system"}
	}
	f := storageFacts(in.Facts, in.Choice)
	f.Force, f.Images = storageDriver(o), in.Choice.Rung == sandbox.RungSentry
	if in.Choice.Rung == sandbox.RungChroot {
		f.Force = snapshot.Copy
	}
	d, why := snapshot.Choose(f)
	if d == nil {
		return doctor.Chosen{Name: "none", Why: why}
	}
	return doctor.Chosen{Name: d.Name(), Why: why}
}

// tryNetworks tries what den serve has to do for networks on the rung that was chosen, where it would be done.
func tryNetworks(ctx context.Context, in doctor.Input) network.Trial {
	if in.ChoiceErr != nil {
		return network.Trial{Facts: network.Facts{Namespaces: errors.New("nothing can be run")}, Ports: network.TryPorts()}
	}
	if in.Choice.Enter {
		t, err := network.TryInUserns(ctx)
		if err != nil {
			t.Facts.Namespaces = err
		}
		return t
	}
	return network.Trial{Facts: networkFacts(in.Choice.Rung), Ports: network.TryPorts()}
}

// chosenNetwork is what Networks would choose.
func chosenNetwork(in doctor.Input) doctor.Chosen {
	if in.ChoiceErr != nil {
		return doctor.Chosen{Name: "none", Why: "none: nothing can be run that needs a network"}
	}
	c := network.Choose(explained(in.Networks.Facts, in.Facts.Security))
	const steps = "; RUN steps and den run share the network around den, or have none"
	if c.Driver == "" {
		return doctor.Chosen{Name: sandbox.NetworkHost, Why: c.Why, Better: c.Better, BetterWhy: c.BetterWhy}
	}
	return doctor.Chosen{Name: c.Driver, Why: c.Why + steps, Better: c.Better, BetterWhy: c.BetterWhy}
}

// trySocket finds out whether den serve could listen where it does by itself.
func trySocket(ctx context.Context) doctor.Serve {
	ctx, cancel := context.WithTimeout(ctx, doctorSocket)
	defer cancel()
	a := socket.Address{Network: socket.Unix, Name: dockerd.DefaultSocket(os.Geteuid(), os.Getenv, func(dir string) bool { return unix.Access(dir, unix.W_OK) == nil })}
	s := doctor.Serve{Socket: a.Name}
	s.InUse, s.Err = socket.Try(ctx, a)
	return s
}
