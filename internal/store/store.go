package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/durable"
	"den/internal/sys"
)

// Options are the choices of one process. The zero value is the default.
type Options struct {
	// EngineDir is where the engine's id is kept (--data-root); empty is the first
	// directory of the user's that is the job's own, never one in the store or on its volume.
	EngineDir string
	// Durability says what a power cut may take; empty is durable.Epoch, on
	// tmpfs durable.None.
	Durability durable.Mode
	// Bases are directories of other stores, which are read and never changed:
	// what they have counts as being here. The first that has it serves.
	Bases []string
	// UnsafeFS opens a store on a file system that is refused otherwise,
	// because locks and renames are not known to work there. One process tree
	// at a time may use it.
	UnsafeFS bool
	// MaxBytes caps objects, cache mounts, containers, volumes, drafts and
	// reservations together; 0 is no cap. It binds the processes that have it.
	MaxBytes int64
	// MinFreeBytes is what this process leaves free of the file system.
	MinFreeBytes int64
	// SoftBudget makes the two evict cache and refuse nothing.
	SoftBudget bool
	// Image keeps layers' trees in image form, which needs no privilege and which
	// processes of any uid share; see ImageForm.
	Image bool
	// Notice gets a line for the user; nil drops it.
	Notice func(string)
	// Collected is called after each collection of this process; nil is not.
	Collected func()

	pulse pulse // of tests; the zero value is defaultPulse
}

// Store is a directory of objects, open in this process. It is safe for
// concurrent use, by any number of processes.
type Store struct {
	root      string
	class     string
	readOnly  bool
	notice    func(string)
	collected func()        // after a collection
	patience  time.Duration // with silent holders of work
	busyWait  time.Duration // for objects that somebody holds exclusively
	budget    budget
	crowded   atomic.Int64 // when a soft budget could not be kept, in Unix seconds
	user      *os.File     // lock/store, shared while this process uses the store
	boot      string       // names this kernel's run
	pulse     pulse
	heart     *heart // nil where nothing is written
	log       *durable.Log
	engine    engine

	bases []*Store // asked for what is not here
	// Of a base: what a crash may have torn, and whether its trees are for
	// other owners than this process's.
	isBase   bool
	suspects map[string]bool
	foreign  bool

	closeOnce func() error

	wedged atomic.Int64 // when a lock was last not to be had in time; Unix ns

	// naming is full while one of this process's goroutines is at names: the others wait without polling.
	naming chan struct{}

	mu     sync.Mutex
	leases map[string]*lease // by path
}

// Open opens the store in root and makes it when it is missing. After a
// reboot the first to open it checks what may be torn, and the others wait.
//
// Errors are of class errdefs.ErrFailedPrecondition where the store can not
// be used as it is: an unsuitable file system, another user's store, a newer
// format.
func Open(ctx context.Context, root string, o Options) (_ *Store, err error) {
	root, err = filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{root: root, notice: o.Notice, patience: silence, busyWait: busyWait, naming: make(chan struct{}, 1), leases: map[string]*lease{},
		pulse: cmp.Or(o.pulse, defaultPulse), budget: budget{maxBytes: o.MaxBytes, minFreeBytes: o.MinFreeBytes, soft: o.SoftBudget}}
	s.closeOnce = sync.OnceValue(s.close)
	if s.notice == nil {
		s.notice = func(string) {}
	}
	if s.collected = o.Collected; s.collected == nil {
		s.collected = func() {}
	}
	if s.class, err = classFor(o.Image); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	mode, err := durable.ParseMode(string(o.Durability))
	if err == nil {
		err = s.open(ctx, mode, o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", root, err), s.release())
	}
	return s, nil
}

// unknownBoot stands for the name of a kernel that has none.
const unknownBoot = "unknown"

func (s *Store) open(ctx context.Context, mode durable.Mode, o Options) error {
	if err := os.MkdirAll(s.root, 0o755); err != nil {
		return fmt.Errorf("%w; set DEN_STORE to a directory that can be written, best on a volume", err)
	}
	fsys, err := s.checkPlace(o.UnsafeFS)
	if err != nil {
		return err
	}
	if o.Durability == "" && fsys == "tmpfs" {
		mode = durable.None
	}
	if err := s.checkFormat(); err != nil {
		return err
	}
	s.user, err = s.useShared(ctx)
	if errors.Is(err, os.ErrNotExist) && !s.readOnly {
		// After a power cut btrfs may bring back the format file, which was
		// synced, and nothing else.
		if err = s.makeFolders(); err == nil {
			s.user, err = s.useShared(ctx)
		}
	}
	if err != nil {
		return err
	}
	boot, err := sys.BootID()
	if err != nil {
		// Without a name for this kernel's run no crash can be noticed later.
		boot, mode = unknownBoot, durable.Strict
	}
	if s.readOnly {
		mode = durable.None
		if s.suspects, err = s.suspected(); err != nil {
			return err
		}
	}
	s.boot = boot
	if err := s.meetHosts(ctx); err != nil {
		return err
	}
	if mode != durable.None {
		if err := s.recover(ctx, boot); err != nil {
			return err
		}
	}
	if s.log, err = durable.Open(s.path("sync"), boot, mode); err != nil {
		return err
	}
	if err := s.openEngine(ctx, o.EngineDir); err != nil {
		return err
	}
	return s.openBases(ctx, o.Bases)
}

// Close ends this process's use of the store. What it published is synced to
// disk by a detached process that nobody waits for; in strict mode it is on disk
// when Close returns. Leases that are still open stay valid. Closing again does nothing.
func (s *Store) Close() error { return s.closeOnce() }

func (s *Store) close() error {
	// Nobody waits for more than a collection of what this process made.
	if err := s.collectAtExit(context.Background()); err != nil {
		s.notice(fmt.Sprintf("store %s: %v", s.root, err))
	}
	if err := s.log.Leave(os.Getpid()); err != nil {
		s.notice(fmt.Sprintf("store %s: what was just written is not synced: %v", s.root, err))
	}
	return s.release()
}

func (s *Store) release() error {
	var errs []error
	if s.heart != nil {
		errs = append(errs, s.heart.end())
		s.heart = nil
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	errs = append(errs, closeBases(s.bases))
	for _, f := range []*os.File{s.engine.lock, s.user} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Root is the store's directory.
func (s *Store) Root() string { return s.root }

// Class names how the ids of files on disk relate to those in images: "0" is
// the same, "m<hash>" as this user namespace maps them, "flat" all one user. An "r" at
// the end says that device nodes are recorded instead of made, as they always are in "m<hash>".
// Layers of one class are of no use to another. "image" is the class of trees in image
// form, which say themselves whose everything is.
func (s *Store) Class() string { return s.class }

// ImageForm reports whether layers' trees are images: then Draft.FS and Layer.Dirs
// are paths of files (docs/design/store.md, "Image form"), and layer.UnpackOptions
// have to say so.
func (s *Store) ImageForm() bool { return s.class == imageClass }

// writable returns an error when this process may only read.
func (s *Store) writable() error {
	if s.readOnly {
		return fmt.Errorf("store %s is read-only: %w", s.root, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// openLock opens a lock file, and makes it.
func openLock(path string, readOnly bool) (*os.File, error) {
	if readOnly {
		return os.Open(path)
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
}

// waitLock polls until it has the lock of f, for others may have to wait for
// minutes and ctx may end meanwhile. It calls waiting, if there is one, once
// before it waits.
func waitLock(ctx context.Context, f *os.File, how int, waiting func()) error {
	ok, err := sys.TryFlock(f, how)
	if ok || err != nil {
		return err
	}
	if waiting != nil {
		waiting()
	}
	for p := newPoll(); ; {
		if err := p.wait(ctx); err != nil {
			return err
		}
		if ok, err := sys.TryFlock(f, how); ok || err != nil {
			return err
		}
	}
}

// A poll paces the attempts at something that nobody announces: soon at first,
// because most waits are short, then 50 times a second.
type poll struct{ pause, most time.Duration }

func newPoll() *poll { return &poll{pause: 100 * time.Microsecond, most: 20 * time.Millisecond} }

func (p *poll) wait(ctx context.Context) error {
	t := time.NewTimer(p.pause)
	defer t.Stop()
	p.pause = min(2*p.pause, p.most)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
