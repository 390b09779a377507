package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/sys"
)

// openBases opens the stores below s, in the order in which they are asked.
func (s *Store) openBases(ctx context.Context, dirs []string) error {
	var bases []*Store
	for _, dir := range dirs {
		b, err := s.openBase(ctx, dir)
		if err != nil {
			return errors.Join(fmt.Errorf("base store %s: %w", dir, err), closeBases(bases))
		}
		if b != nil {
			bases = append(bases, b)
		}
	}
	for i, b := range bases {
		b.bases = bases[i+1:] // where it was itself an upper store
	}
	s.bases = bases
	return nil
}

// openBase opens another store, which somebody else may write to, to read from
// it: nothing in it is changed, not even the time of last use. What protects
// its objects is a lease as any other, which needs no more than an open file.
// It is nil when there is no store in dir yet.
func (s *Store) openBase(ctx context.Context, dir string) (_ *Store, err error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if same, err := sameDir(root, s.root); same || err != nil {
		if same {
			err = fmt.Errorf("it is the store itself; a base is another directory: %w", errdefs.ErrInvalidArgument)
		}
		return nil, err
	}
	b := &Store{root: root, class: s.class, readOnly: true, isBase: true, notice: s.notice, patience: s.patience,
		busyWait: s.busyWait, boot: s.boot, pulse: s.pulse, leases: map[string]*lease{}}
	if _, err := b.checkPlace(false); err != nil {
		return nil, err
	}
	err = b.checkFormat()
	if errors.Is(err, fs.ErrNotExist) {
		s.notice(fmt.Sprintf("base store %s: there is no store in it yet", root))
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("it can not be read by uid %d; its owner has to let others read it (chmod o+rx): %w: %w",
			os.Geteuid(), err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	if b.user, err = b.useShared(ctx); err != nil {
		return nil, err
	}
	if err = b.meetHosts(ctx); err == nil {
		b.suspects, err = b.suspected()
	}
	if err != nil {
		return nil, errors.Join(err, closeBases([]*Store{b}))
	}
	b.foreign = !b.ownsTrees()
	return b, nil
}

// sameDir reports whether two paths are one directory; missing ones are an error.
func sameDir(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, fmt.Errorf("%w; make it, or leave out --base-store (DEN_BASE_STORE)", err)
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y), err
}

// suspected are the paths of what a crash may have torn, when no writer has
// looked after it since: those count as missing here.
func (s *Store) suspected() (map[string]bool, error) {
	boot, err := sys.BootID()
	if err != nil {
		boot = unknownBoot
	}
	dir := s.path("sync")
	if clean, err := durable.Clean(dir, boot); clean || err != nil {
		return nil, err
	}
	rels, err := durable.Suspects(dir, boot)
	if err != nil {
		return nil, fmt.Errorf("what a crash may have torn: %w", err)
	}
	torn := map[string]bool{}
	for _, rel := range rels {
		torn[rel] = true
	}
	return torn, nil
}

// ownsTrees reports whether the trees of this process's class in the store
// were made by somebody whom this process sees as its own user: only then do
// owners and modes in them mean what they say. Another user's "flat" trees, and
// those of a user namespace that is mapped alike inside of another, are not ours.
func (s *Store) ownsTrees() bool {
	if s.ImageForm() {
		return true // images say themselves what owners and modes there are
	}
	info, err := os.Lstat(s.path("layers", s.class))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // the first one has yet to come
	}
	return info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid())
}

func closeBases(bases []*Store) error {
	var errs []error
	for _, b := range bases {
		if b.user != nil {
			errs = append(errs, b.user.Close())
		}
	}
	return errors.Join(errs...)
}

// Bases are the directories of the base stores, in the order in which they are
// asked.
func (s *Store) Bases() []string {
	var roots []string
	for _, b := range s.bases {
		roots = append(roots, b.root)
	}
	return roots
}

// orBase asks s and, when it does not have it, each of its bases. Whatever goes
// wrong with a base is a miss: it is a cache that others look after.
func orBase[T any](ctx context.Context, s *Store, ask func(*Store) (T, error)) (T, error) {
	v, err := ask(s)
	if !errdefs.IsNotFound(err) {
		return v, err
	}
	for _, b := range s.bases {
		if v, berr := ask(b); berr == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return v, context.Cause(ctx)
		}
	}
	return v, err
}

// suspect reports whether rel is in a base that was not looked after since a
// crash which may have torn it.
func (s *Store) suspect(rel string) bool { return s.suspects[rel] }

// BaseUsage is what one base store has.
type BaseUsage struct {
	Root                   string
	Blobs, Layers, Records UsageOf
}

// basesUsage counts what is in the bases, without a lock.
func (s *Store) basesUsage(ctx context.Context) ([]BaseUsage, error) {
	var out []BaseUsage
	for _, b := range s.bases {
		u := BaseUsage{Root: b.root}
		err := b.objects(ctx, func(o object) error {
			of := &u.Blobs
			if o.kind == kindLayer {
				of = &u.Layers
			}
			of.add(b.objectBytes(o), true) // nothing of it is ours to reclaim
			return nil
		})
		if err == nil {
			err = b.records(ctx, func(root) error { u.Records.add(0, true); return nil })
		}
		if err != nil {
			return nil, fmt.Errorf("base store %s: %w", b.root, err)
		}
		out = append(out, u)
	}
	return out, nil
}

// useShared opens lock/store and takes it shared, for as long as this process
// uses the store. Whoever takes it exclusively, to work on the store offline,
// writes into the file first. A reader of the store cannot write: it could hold
// the lock, but nobody waits for it.
func (s *Store) useShared(ctx context.Context) (*os.File, error) {
	f, err := openLock(s.path("lock", "store"), s.readOnly)
	if s.isBase && (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for p := newPoll(); ; {
		err := s.lockShortly(ctx, f, unix.LOCK_SH)
		if err == nil {
			return f, nil
		}
		info, serr := f.Stat()
		if errors.Is(err, errBusy) && serr == nil && info.Size() == 0 {
			return f, nil
		}
		if errors.Is(err, errBusy) && serr == nil {
			err = p.wait(ctx)
		}
		if err := errors.Join(serr, err); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
}
