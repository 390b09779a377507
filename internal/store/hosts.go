package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// hostsFolder has one file for each kernel with a process that has the store
// open, named by its boot id: its heartbeat. Locks do not reach from one kernel
// to another (a guest and its host, say), so two of them must not share a store.
const hostsFolder = "hosts"

// A pulse is how a kernel's heartbeat goes.
type pulse struct {
	every time.Duration // between two beats of one process
	watch time.Duration // how long a foreign one must stand still to be dead
}

var defaultPulse = pulse{every: 2 * time.Second, watch: 5 * time.Second}

// A heart beats for this process until it is stopped.
type heart struct {
	file *os.File // this kernel's, locked while the process lives
	stop chan struct{}
	done chan struct{}
}

// meetHosts shows that this kernel uses the store, and refuses it when another
// one does too.
func (s *Store) meetHosts(ctx context.Context) error {
	if s.boot == unknownBoot {
		return nil // all kernels would be one
	}
	if !s.readOnly {
		if err := s.beat(ctx); err != nil {
			return err
		}
	}
	return s.checkHosts(ctx)
}

// beat gives this kernel its sign of life, and starts the process's heart. It
// comes before the look at the others: of two kernels that open the store at
// once, at least one sees the other.
func (s *Store) beat(ctx context.Context) error {
	// The store may have been made by a den that had no heartbeat.
	if err := os.Mkdir(s.path(hostsFolder), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("heartbeat: %w", err)
	}
	for {
		if err := failpoint.Hit("store.hosts.beat"); err != nil {
			return err
		}
		f, err := os.OpenFile(s.path(hostsFolder, s.boot), os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, unix.ENOSPC) {
			return nil // who cannot open a full store cannot make room in it
		}
		if err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		// Shared by all who live here. Who is held up by the last one to leave,
		// which was stopped, beats without: the next beat makes the file again.
		err = s.lockShortly(ctx, f, unix.LOCK_SH)
		same := errors.Is(err, errBusy)
		if err == nil {
			same, err = sys.SameInode(f, f.Name())
		}
		if err == nil && !same {
			err = f.Close()
			if err == nil {
				continue
			}
		}
		if err = ignore(err, errBusy); err == nil {
			err = writeBeat(f.Name())
		}
		if err != nil {
			return errors.Join(fmt.Errorf("heartbeat: %w", err), f.Close())
		}
		s.heart = &heart{f, make(chan struct{}), make(chan struct{})}
		go s.heart.run(s.pulse.every)
		return nil
	}
}

// writeBeat changes the content and the time of change. Their values mean nothing, so
// that processes of one kernel need not agree on them. On a full disk the time
// must do, which takes no room.
func writeBeat(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return ignore(err, unix.ENOSPC)
	}
	_, err = f.WriteAt([]byte(rand.Text()), 0)
	now := time.Now()
	return errors.Join(ignore(err, unix.ENOSPC), os.Chtimes(path, now, now), f.Close())
}

func (h *heart) run(every time.Duration) {
	defer close(h.done)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-t.C:
			_ = writeBeat(h.file.Name())
		}
	}
}

// end stops the heart. The last process of its kernel takes the heartbeat with
// it, so that another kernel need not watch it stand still: a volume may go from
// machine to machine.
func (h *heart) end() error {
	close(h.stop)
	<-h.done
	err := h.leave()
	return errors.Join(err, h.file.Close())
}

func (h *heart) leave() error {
	ok, err := sys.TryFlock(h.file, unix.LOCK_EX)
	if !ok || err != nil {
		return err
	}
	if err := failpoint.Hit("store.hosts.leave"); err != nil {
		return err
	}
	return removeFile(h.file.Name())
}

// checkHosts refuses a store that another kernel uses now. Those that
// are dead, because their heartbeat stands still for a while by our own clock,
// are forgotten.
func (s *Store) checkHosts(ctx context.Context) error {
	before, err := s.foreignBeats()
	if err != nil || len(before) == 0 {
		return err
	}
	deadline := time.Now().Add(s.pulse.watch)
	for p := newPoll(); len(before) > 0 && time.Now().Before(deadline); {
		if err := p.wait(ctx); err != nil {
			return err
		}
		now, err := s.foreignBeats()
		if err != nil {
			return err
		}
		for host, beat := range now {
			if old, seen := before[host]; !seen || old != beat {
				return fmt.Errorf("another machine (its boot id is %s) uses it at the same time, and locks do not hold between machines; "+
					"set DEN_STORE to a directory that only this one uses: %w", host, errdefs.ErrFailedPrecondition)
			}
		}
		before = now // who has gone was forgotten by another process
	}
	return s.forgetHosts(before)
}

// forgetHosts removes the heartbeats of dead kernels.
func (s *Store) forgetHosts(dead map[string]string) error {
	if s.readOnly {
		return nil
	}
	for host := range dead {
		if err := failpoint.Hit("store.hosts.forget"); err != nil {
			return err
		}
		if err := removeFile(s.path(hostsFolder, host)); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
	}
	return nil
}

// foreignBeats reads the heartbeats of the other kernels.
func (s *Store) foreignBeats() (map[string]string, error) {
	hosts, err := readNames(s.path(hostsFolder))
	if err != nil {
		return nil, ignore(err, os.ErrNotExist)
	}
	beats := map[string]string{}
	for _, host := range hosts {
		if host == s.boot {
			continue
		}
		// Who may only read cannot forget the dead, and would wait for them at each
		// open; a clock may say that they are.
		if s.readOnly && !usedSince(s.path(hostsFolder, host), time.Now().Add(-time.Minute)) {
			continue
		}
		// Opened anew each time, for what a network file system keeps in memory.
		beat, err := readBounded(s.path(hostsFolder, host))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("heartbeat: %w", err)
		}
		info, err := os.Stat(s.path(hostsFolder, host))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("heartbeat: %w", err)
		}
		beats[host] = fmt.Sprintf("%s %d", beat, info.ModTime().UnixNano())
	}
	return beats, nil
}

func usedSince(path string, since time.Time) bool {
	info, err := os.Stat(path)
	return err == nil && info.ModTime().After(since)
}
