// Package daemon is the wiring: it opens the store, finds out which rung and
// which snapshot driver the outer container allows, and hands the engines what
// they stand on. Despite its name nothing stays behind: what Open starts, Close
// ends, in reverse.
//
// Opening is lazy, because most commands need little: `den images` reads
// names, and pays for neither a probe nor an executor.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/registry"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/store/backing"
	"den/internal/sys"
)

// Options say where den keeps things and how it reaches others. The zero value
// is what den without flags uses.
type Options struct {
	// StoreRoot is the shared store; empty is store.DefaultRoot.
	StoreRoot string
	// BaseStores are directories of stores that are read below it, and not changed.
	BaseStores []string
	// DataRoot keeps the engine's own id; empty is one per user.
	DataRoot string
	// MaxBytes caps the store, MinFreeBytes is what stays free of its disk; 0 is
	// no limit.
	MaxBytes, MinFreeBytes int64
	// Durability is epoch, strict or none; empty is epoch, or none on tmpfs.
	Durability string
	// Isolation forces a rung; empty or "auto" lets den choose.
	Isolation string
	// StorageDriver forces a snapshot driver; empty is DEN_STORAGE_DRIVER's, and else den's choice.
	StorageDriver string
	// StoreForm forces the form of layers' trees: directory or image; empty is
	// DEN_STORE_FORM, or what fits the rung. See store.Options.Image.
	StoreForm string
	// Mirrors, Insecure, Certs (CACertDirs) and DaemonJSON are
	// registry.Options'; ConfigDir is docker's directory of config.json.
	Mirrors, Insecure, Certs []string
	DaemonJSON, ConfigDir    string
	// SkipVerify, ClientCerts, MirrorsOnly, Credentials and Fallback are
	// registry.Options'.
	SkipVerify, ClientCerts []string
	MirrorsOnly             bool
	Credentials, Fallback   registry.CredentialFunc
	// Transport fetches http and git sources of builds; nil is Go's own.
	Transport http.RoundTripper
	// NoTrees is why this process can make no trees with their owners, as Enter
	// said; nil if it can.
	NoTrees error
	// Version of den, for records and user agents.
	Version string
	// Adopts says that this process takes over what runs of the engine's containers: Enter joins
	// their user namespace, if they have one, instead of making another.
	Adopts bool
	// Surroundings, if set, are what Enter found: nobody has to look again.
	Surroundings *Surroundings
	// Notice takes lines for the user, Debug those about what den chose and
	// why; nil drops them.
	Notice, Debug func(string)
}

// registry are the options that concern registries.
func (o Options) registry() registry.Options {
	return registry.Options{
		ConfigDir: o.ConfigDir, Mirrors: o.Mirrors, Insecure: o.Insecure, CACertDirs: o.Certs,
		DaemonJSON: o.DaemonJSON, UserAgent: "den/" + o.Version, Notice: o.Notice,
		SkipVerify: o.SkipVerify, ClientCerts: o.ClientCerts, MirrorsOnly: o.MirrorsOnly, Credentials: o.Credentials, Fallback: o.Fallback, Helpers: helpers(),
	}
}

// Registry is a client for commands that need no store.
func Registry(o Options) (*registry.Client, error) { return registry.New(o.registry()) }

// Den is an opened engine room.
type Den struct {
	Store    *store.Store
	Images   *image.Images
	Registry *registry.Client
	backing  *backing.Backing // nil for a store in a plain directory
	switches *os.File         // this process's claim on the engine's networks, where they live in it
	options  Options

	surroundings func(context.Context) *Surroundings

	once   sync.Once
	runner Runner
	err    error
}

// Open opens the store. Close it.
func Open(ctx context.Context, o Options) (_ *Den, err error) {
	o = withDefaults(o)
	so := store.Options{
		EngineDir: o.DataRoot, Bases: o.BaseStores, Notice: o.Notice, MaxBytes: o.MaxBytes, MinFreeBytes: o.MinFreeBytes,
		Durability: durable.Mode(o.Durability),
	}
	if so.MaxBytes == 0 && so.MinFreeBytes == 0 {
		// dockerd's limits are of its cache: they evict, and refuse nothing.
		b := o.cacheBudget()
		so.MaxBytes, so.MinFreeBytes, so.SoftBudget = b.maxBytes, b.minFreeBytes, true
	}
	if so.Image, err = o.images(); err != nil {
		return nil, err
	}
	root, b, err := mounted(o)
	if err != nil {
		return nil, err
	}
	if b != nil {
		so.Collected = func() {
			if err := b.TrimLater(); err != nil {
				o.Debug(err.Error())
			}
		}
	}
	if err := snapshot.ReleaseDead(root); err != nil {
		o.Debug(err.Error())
	}
	_, err = os.Stat(filepath.Join(root, store.FormatFile))
	made := errors.Is(err, os.ErrNotExist)
	st, err := store.Open(ctx, root, so)
	if err != nil {
		return nil, err
	}
	o.Debug(fmt.Sprintf("store %s, engine %s, owners %s", st.Root(), st.EngineID(), st.Class()))
	reg, err := Registry(o)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	d := &Den{Store: st, Registry: reg, backing: b, options: o}
	d.surroundings = d.lookAround()
	if made {
		d.sayCap()
	}
	d.Images = d.images(reg)
	return d, nil
}

// images are those of the store, from what a registry client can have.
func (d *Den) images(reg *registry.Client) *image.Images {
	return image.New(d.Store, reg, image.Options{InUserns: !sys.MakesDevices(), NoTrees: d.options.NoTrees, InUse: d.users, Version: d.options.Version})
}

func withDefaults(o Options) Options {
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	if o.Debug == nil {
		o.Debug = func(string) {}
	}
	return o
}

// Close closes the store; nobody waits for the disk.
func (d *Den) Close() error {
	err := d.Store.Close()
	if d.switches != nil {
		err = errors.Join(err, d.switches.Close())
	}
	return err
}

// nearest is dir, or the nearest existing directory above it.
func nearest(dir string) string {
	for {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up
	}
}
