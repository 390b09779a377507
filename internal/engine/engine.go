// Package engine runs containers: it joins an image, a root file system,
// volumes and a sandbox to the named record that a person calls a container.
//
// A container is a directory of the store, locked by the den that runs it, so
// that a dead owner shows itself: whoever gets the lock may clean up. Its layers
// are roots of the store's collector for as long as the directory exists, and
// leases keep them while they are mounted. The engine asks for a sandbox by OCI
// runtime spec and never knows which rung runs it.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
	"den/internal/image"
	"den/internal/network"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/tree"
)

// Options are what an engine stands on.
type Options struct {
	Store  *store.Store
	Images *image.Images
	Exec   sandbox.Executor
	Driver snapshot.Driver
	// InUserns says that device nodes cannot be made.
	InUserns bool
	// Recorded says that owners in volumes are recorded, because this process
	// may not chown. See sys.InodeAttr.
	Recorded bool
	// Networks are what containers of den serve are connected to; nil where they have
	// that of the surroundings or none.
	Networks *network.Networks
	// Log takes what goes wrong where nobody waits for an answer; may be nil.
	Log func(error)
}

// Engine runs containers. It is safe for concurrent use.
type Engine struct {
	Options
	residents residents
	events    events
	execs     execs
}

// New returns an engine.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = func(error) {}
	}
	return &Engine{Options: o}
}

// An Exit is how a container ended.
type Exit struct {
	// Code is what a shell would see: the exit status, or 128 plus the signal.
	Code      int
	OOMKilled bool
}

// Run creates a container, runs it to its end and, with Remove, deletes it.
// Cancelling ctx ends what comes before the program; once that runs, it ends by
// its own will or by s.Signals. The error is den's own; a program that fails is an
// Exit. A program that cannot be executed is a *sandbox.ExecError.
func (e *Engine) Run(ctx context.Context, req RunRequest, s Streams) (exit Exit, err error) {
	if s.Warn == nil {
		s.Warn = func(string) {}
	}
	if s.Sink == nil {
		s.Sink = progress.Discard
	}
	if err := req.check(); err != nil {
		return Exit{}, err
	}
	cid, err := newCIDFile(req.CIDFile)
	if err != nil {
		return Exit{}, err
	}
	defer func() {
		// It names a container that there is, or is not there.
		err = errors.Join(err, cid.close(err != nil && req.Remove))
	}()
	c, err := e.create(ctx, &req, s)
	if err != nil {
		return Exit{}, err
	}
	defer func() {
		// Undo runs also when the caller gave up.
		err = errors.Join(err, c.finish(req.Remove))
	}()
	if err := cid.write(c.record.ID); err != nil {
		return Exit{}, err
	}
	return c.run(ctx, s)
}

// container is one container in the hands of the den that runs it.
type container struct {
	engine  *Engine
	request *RunRequest
	image   *image.Image
	config  *oci.Image
	dir     *store.ContainerDir
	record  record
	trees   []*store.Layer
	view    tree.FS
	active  *snapshot.Active
	volumes []attachedVolume
	// more is what den serve was asked for beyond request; empty for den run.
	more      *CreateRequest
	endpoints []network.Endpoint
	// upper is the name of the tree that this run writes, in dir; empty is den run's.
	upper string
}

func (e *Engine) create(ctx context.Context, req *RunRequest, s Streams) (*container, error) {
	img, err := e.resolve(ctx, req, s)
	if err != nil {
		return nil, err
	}
	config, err := img.Parse()
	if err != nil {
		return nil, err
	}
	warnPlatform(img, req, s)
	c := &container{engine: e, request: req, more: &CreateRequest{}, image: img, config: config}
	if err := c.create(ctx, s); err != nil {
		return nil, errors.Join(err, c.finish(true))
	}
	return c, nil
}

func (c *container) create(ctx context.Context, s Streams) (err error) {
	c.trees, err = c.engine.Images.Trees(ctx, c.image.Layers, image.TreeOptions{Sink: s.Sink})
	if err != nil {
		return err
	}
	if err := c.register(ctx); err != nil {
		return err
	}
	if c.view, err = tree.Stack(c.dirs()); err != nil {
		return fmt.Errorf("read layers of %s: %w", c.image, err)
	}
	if err := c.attachVolumes(ctx); err != nil {
		return err
	}
	stack := make([]snapshot.Tree, len(c.trees))
	for i, t := range c.trees {
		stack[i] = t
	}
	c.active, err = c.engine.Driver.Prepare(ctx, stack, c.draft())
	return err
}

func (e *Engine) resolve(ctx context.Context, req *RunRequest, s Streams) (*image.Image, error) {
	o := image.ResolveOptions{Platform: req.Platform, Sink: s.Sink}
	switch req.Pull {
	case "", "missing":
	case "always":
		o.Mode = image.ResolvePull
	case "never":
		o.Mode = image.ResolveLocal
	default:
		return nil, fmt.Errorf("pull %q: %w: want always, missing or never", req.Pull, errdefs.ErrInvalidArgument)
	}
	return e.Images.Resolve(ctx, req.Image, o)
}

// warnPlatform says, as docker does, that an image came along that this machine
// may not be able to run.
func warnPlatform(img *image.Image, req *RunRequest, s Streams) {
	p := img.Platform
	if req.Platform != nil || p.Architecture == "" || p.Architecture == runtime.GOARCH {
		return
	}
	s.Warn(fmt.Sprintf("The requested image's platform (%s/%s) does not match the detected host platform (%s/%s) and no specific platform was requested",
		p.OS, p.Architecture, runtime.GOOS, runtime.GOARCH))
}

// register gives the container its directory, its roots and its name.
func (c *container) register(ctx context.Context) error {
	id, err := newID()
	if err != nil {
		return err
	}
	if c.dir, err = c.engine.Store.NewContainer(ctx, id); err != nil {
		return err
	}
	if err := failpoint.Hit("engine.register.roots"); err != nil {
		return err
	}
	if err := c.dir.SetRoots(store.Record{Layers: c.image.DiffIDs()}); err != nil {
		return err
	}
	if err := c.draft().make(); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(c.dir.Path(), exitFile), nil, 0o600); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	name, err := c.engine.nameContainer(ctx, c.request.Name, id)
	if err != nil {
		return err
	}
	c.record = newRecord(c, id, name)
	if err := failpoint.Hit("engine.register.record"); err != nil {
		return err
	}
	return c.record.write(c.dir.Path())
}

// dirs are the trees' directories, top first.
func (c *container) dirs() []string {
	var dirs []string
	for _, t := range slices.Backward(c.trees) {
		dirs = append(dirs, t.Dirs()...)
	}
	return dirs
}

// finish closes what create opened and, with remove, deletes the container and
// its anonymous volumes.
func (c *container) finish(remove bool) error {
	var errs []error
	if c.active != nil {
		errs = append(errs, c.active.Close())
	}
	if c.view != nil {
		errs = append(errs, c.view.Close())
	}
	for _, v := range c.volumes {
		errs = append(errs, v.hold.Close())
	}
	for _, t := range c.trees {
		errs = append(errs, t.Close())
	}
	if c.dir != nil {
		if remove {
			errs = append(errs, c.remove())
		}
		errs = append(errs, c.dir.Close())
	}
	return errors.Join(errs...)
}

func (c *container) remove() error {
	if c.record.Name == "" { // it did not get as far as a record
		return c.dir.Remove()
	}
	return c.engine.removeDir(c.dir, &c.record)
}

// draft is a container's directory as the snapshot driver sees it: what the
// container writes stays with the container.
type draft struct {
	dir   string
	upper string // the tree's name
	image bool   // is written when the container has ended, to a file
}

func (c *container) draft() draft {
	d := draft{dir: c.dir.Path(), image: c.engine.Store.ImageForm(), upper: c.upper}
	if d.upper == "" {
		d.upper = upperName(d.image, 0)
	}
	return d
}

// upperName is the name of a container's tree number n.
func upperName(image bool, n int) string {
	name := "fs"
	if image {
		name = "image"
	}
	if n > 0 {
		name += "-" + strconv.Itoa(n)
	}
	if image {
		return name + ".erofs"
	}
	return name
}

func (d draft) FS() string { return filepath.Join(d.dir, d.upper) }

func (d draft) Work() string { return d.dir + "/work" }

// make makes what a driver is to find.
func (d draft) make() error {
	if d.image {
		return nil
	}
	return errors.Join(os.Mkdir(d.FS(), 0o755), os.Mkdir(d.Work(), 0o755))
}

// Close does nothing: the directory belongs to the container.
func (d draft) Close() error { return nil }

// newID is a container's or an anonymous volume's random name: 64 hex digits. The first
// twelve are a container's host name, and thus not all decimal: resolvers take such a name
// for an address and look for it nowhere.
func newID() (string, error) {
	var b [32]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("container id: %w", err)
		}
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(id[:12], "abcdef") {
			return id, nil
		}
	}
}
