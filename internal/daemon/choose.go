package daemon

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"den/internal/engine"
	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
)

// Surroundings are what the outer container allows, and what den makes of it.
type Surroundings struct {
	Facts  probe.Facts
	Choice sandbox.Choice
	// Err says why there is no rung; nil if there is one.
	Err error
}

// A Runner is what RUN steps and containers need beyond the store.
type Runner struct {
	Facts     probe.Facts
	Choice    sandbox.Choice
	Exec      sandbox.Executor
	Driver    snapshot.Driver
	DriverWhy string
}

// look tries what the choice of a rung depends on, but for the sentry, which takes
// longer: that is tried when something is to be run in it.
func look(ctx context.Context, o Options) *Surroundings {
	root, _, _ := place(o) // an error is enterBacking's to report
	s := &Surroundings{Facts: probe.Gather(ctx, nearest(root))}
	if trySentry() != nil {
		s.Facts.Sentry = &probe.SentryTrial{}
	}
	s.choose(o)
	return s
}

// choose picks the rung, knowing what merges layers on disk for it.
func (s *Surroundings) choose(o Options) {
	s.Facts.Unmerged = ""
	s.Choice, s.Err = sandbox.Choose(s.Facts, isolation(o))
	if s.Err != nil || s.Facts.Untried != "" || s.Choice.Rung != sandbox.RungPrivileged && s.Choice.Rung != sandbox.RungUserns {
		return
	}
	f := storageFacts(s.Facts, s.Choice)
	f.Force = storageDriver(o)
	if s.Facts.Unmerged = snapshot.Unmerged(f); s.Facts.Unmerged != "" {
		s.Choice, s.Err = sandbox.Choose(s.Facts, isolation(o))
	}
}

// tried is s once the sentry is tried, if that is what the choice depends on, or
// if it is wanted anyway.
func (s *Surroundings) tried(ctx context.Context, o Options, anyway bool) *Surroundings {
	try := trySentry()
	if try == nil || !anyway && s.Choice.Rung != sandbox.RungSentry {
		return s
	}
	t := &Surroundings{Facts: s.Facts}
	t.Facts.Sentry = &probe.SentryTrial{}
	t.Facts.Sentry.Platform, t.Facts.Sentry.Err = try(ctx)
	t.choose(o)
	return t
}

// Enter moves the process to where it can do its work: into a mount namespace with the
// store's image, if it has one, and into a user namespace if it needs one to touch trees. It
// re-executes den there, in place, and returns only if that is not needed or
// failed. Who keeps trees as images, and root that may give files away, need none, even
// where no rung fits: what wants to run something finds out from Runner. Call it before Open, once, from the
// main goroutine. What it found is in o.Surroundings then.
func Enter(ctx context.Context, o *Options) error {
	if err := enterBacking(*o); err != nil {
		return err
	}
	if sandbox.Entered() || privileged() && o.strong() {
		return nil
	}
	s := look(ctx, *o)
	o.Surroundings = s
	images, err := o.images()
	if err != nil {
		return err
	}
	if errdefs.IsFailedPrecondition(s.Err) && (images && sandbox.Auto(isolation(*o)) || sandbox.OwnsTrees(s.Facts)) {
		return nil
	}
	if s.Err != nil || images || !s.Choice.Enter {
		return s.Err
	}
	if o.Adopts {
		root := o.StoreRoot
		if root == "" {
			root = store.DefaultRoot()
		}
		dirs := engine.SandboxDirs(store.EngineContainers(root, o.DataRoot))
		if err := sandbox.JoinUserns(dirs, os.Args, os.Environ()); err != nil {
			return sandbox.Explain(s.Facts.Security, fmt.Errorf("join what runs: %w", err))
		}
	}
	if err := sandbox.EnterUserns(s.Facts, os.Args, os.Environ()); err != nil {
		return sandbox.Explain(s.Facts.Security, fmt.Errorf("enter user namespace: %w", err))
	}
	return nil
}

// strong reports whether a process that can do everything runs on the rung privileged,
// which all but the storage decides.
func (o Options) strong() bool {
	if !sandbox.Auto(isolation(o)) {
		return isolation(o) == string(sandbox.RungPrivileged)
	}
	if !snapshot.Advice(storageDriver(o)) {
		return true
	}
	root, _, _ := place(o)
	return takesOverlays(nearest(root))
}

// lookAround looks once, if Enter has not.
func (d *Den) lookAround() func(context.Context) *Surroundings {
	var once sync.Once
	found := d.options.Surroundings
	return func(ctx context.Context) *Surroundings {
		once.Do(func() {
			if found == nil {
				found = look(ctx, d.options)
			}
		})
		return found
	}
}

// Rung is the rung that steps and containers will run on, as far as it is known
// without starting anything. The error says what was tried and what to install or set.
func (d *Den) Rung(ctx context.Context) (sandbox.Choice, error) {
	s := d.surroundings(ctx)
	return s.Choice, s.Err
}

// Runner chooses, once, the rung and the snapshot driver. The error says what
// was tried and what to install or set.
func (d *Den) Runner(ctx context.Context) (*Runner, error) { return d.runnerFor(ctx, "") }

// runnerFor is Runner for whoever is about to start a sandbox on that network, if it is one.
func (d *Den) runnerFor(ctx context.Context, network string) (*Runner, error) {
	d.once.Do(func() { d.err = d.choose(ctx, network) })
	if d.err != nil {
		return nil, d.err
	}
	return &d.runner, nil
}

func (d *Den) choose(ctx context.Context, network string) (err error) {
	s := d.surroundings(ctx)
	spare := expectSentry(s.Choice, network)
	defer func() {
		if err != nil {
			spare.End()
		}
	}()
	before := s
	if s = s.tried(ctx, d.options, false); spare != nil && s.Facts.Sentry.Err != nil {
		spare.End() // which may have taken what the trial needed: two take twice as many tasks
		s = before.tried(ctx, d.options, false)
	}
	facts, choice := s.Facts, s.Choice
	if s.Err != nil {
		return s.Err
	}
	if !d.Store.ImageForm() && choice.Instead != "" {
		// Enter took it for granted that overlays work on such a file system.
		return fmt.Errorf("rung %s: the store is in directory form, which the sentry would have to copy, and %s; set DEN_STORE_FORM=image: %w",
			choice.Name(), facts.Unmerged, errdefs.ErrFailedPrecondition)
	}
	if d.Store.ImageForm() && choice.Rung != sandbox.RungSentry && facts.Unmerged != "" && facts.Sentry != nil && facts.Sentry.Err != nil {
		return fmt.Errorf("rung %s: nothing merges layers here, and the sentry, which would, does not run: %w; %s, or have every step copy its root file system (DEN_STORAGE_DRIVER=copy): %w",
			choice.Name(), facts.Sentry.Err, facts.Unmerged, errdefs.ErrFailedPrecondition)
	}
	if d.Store.ImageForm() && choice.Rung != sandbox.RungSentry {
		return fmt.Errorf("rung %s: the store was opened in image form, which only the sentry runs; "+
			"leave DEN_STORE_FORM out, or set DEN_ISOLATION=sentry: %w", choice.Name(), errdefs.ErrFailedPrecondition)
	}
	if choice.Enter {
		// Enter took it for granted that a process with CAP_SYS_ADMIN can mount.
		return fmt.Errorf("rung privileged: %w; a user namespace would do: set DEN_ISOLATION=userns: %w", facts.Refused, errdefs.ErrFailedPrecondition)
	}
	if facts.NoExec && choice.Rung == sandbox.RungSentry {
		// It maps what it executes from the layer's file, and a program that it cannot map dies of SIGSEGV.
		return fmt.Errorf("rung %s: the store %s is mounted noexec, from where the sentry can execute nothing: mount it with exec (docker run --tmpfs DIR:exec): %w",
			choice, d.Store.Root(), errdefs.ErrFailedPrecondition)
	}
	exec, err := d.newExecutor(choice, spare)
	if err != nil {
		return err
	}
	driver, why := d.chooseDriver(facts, choice)
	if driver == nil {
		return fmt.Errorf("storage driver %s: %w", why, errdefs.ErrFailedPrecondition)
	}
	if facts.Overlay != 0 && facts.FSType == "overlay" && choice.Rung != sandbox.RungChroot && !d.Store.ImageForm() {
		d.options.Notice("storage driver " + why) // it ends with the option that helps
	}
	if facts.NoExec {
		d.options.Notice(fmt.Sprintf("store %s is mounted noexec, so that nothing in cache mounts and volumes can be executed: mount it with exec (docker run --tmpfs DIR:exec)", d.Store.Root()))
	}
	if choice.Rung == sandbox.RungChroot {
		for _, what := range choice.Cannot {
			d.options.Notice("rung chroot: " + what)
		}
	}
	if choice.SharePids || choice.Lacks != 0 {
		d.options.Notice("rung " + choice.Name() + ": " + choice.Why)
	}
	d.options.Debug(fmt.Sprintf("rung %s: %s; storage driver %s", choice, choice.Why, why))
	d.runner = Runner{Facts: facts, Choice: choice, Exec: exec, Driver: driver, DriverWhy: why}
	return nil
}

func (d *Den) chooseDriver(facts probe.Facts, c sandbox.Choice) (snapshot.Driver, string) {
	f := storageFacts(facts, c)
	f.Force = storageDriver(d.options)
	if c.Rung == sandbox.RungChroot {
		f.Force = snapshot.Copy // which mounts nothing
	}
	f.Images = d.Store.ImageForm()
	f.Scratch = func(ctx context.Context) (snapshot.Draft, error) { return d.Store.NewDraft(ctx) }
	return snapshot.Choose(f)
}

// storageFacts are what the choice of a snapshot driver for a rung depends on.
func storageFacts(facts probe.Facts, c sandbox.Choice) snapshot.Facts {
	if c.Enter {
		facts.Trial = facts.Userns // what den may do once it is in there
	}
	f := snapshot.Facts{
		OverlayOK:  facts.Overlay == 0,
		OverlayErr: refused(facts.Security, facts.Overlay),
		OnOverlay:  facts.FSType == "overlay",
		BareTmpfs:  facts.BareTmpfs(),
		Reflink:    facts.Reflink == 0,
		Sentry:     facts.Unmerged != "" && facts.Sentry != nil && facts.Sentry.Err == nil && c.Rung != sandbox.RungSentry,
	}
	// Where nothing can be mounted, this cannot either.
	if fuse, err := probe.FuseOverlay(); err != nil {
		f.FuseErr = sandbox.Explain(facts.Security, err).Error()
	} else if facts.Refused != nil {
		f.FuseErr = facts.Refused.Error()
	} else {
		f.Fuse = fuse
	}
	return f
}

func storageDriver(o Options) string {
	if o.StorageDriver != "" {
		return o.StorageDriver
	}
	return os.Getenv("DEN_STORAGE_DRIVER")
}

// Facts says what the outer container allows, whatever den makes of it.
func (d *Den) Facts(ctx context.Context) probe.Facts { return d.surroundings(ctx).Facts }

func isolation(o Options) string {
	if o.Isolation != "" {
		return o.Isolation
	}
	return os.Getenv("DEN_ISOLATION")
}
