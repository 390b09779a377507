package sentry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/metrics"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/cgroup2fs"
	"gvisor.dev/gvisor/pkg/sentry/vfs"

	"den/internal/probe"
)

// limitPids puts what den starts into a cgroup of the sentry's own, which bounds
// its processes and threads, at once or when there is a limit. Each of them is several outside.
func (b *box) limitPids() error {
	tree, err := b.disconnected(cgroup2fs.Name, &vfs.MountOptions{})
	if err != nil {
		return err
	}
	fs := b.k.Cgroup2FS()
	if err := fs.RootCgroup().WriteControl(b.ctx, "cgroup.subtree_control", "+pids"); err != nil {
		return err
	}
	if err := b.k.VFS().MkdirAt(b.ctx, b.root, at(tree, b.id), &vfs.MkdirOptions{Mode: 0o755}); err != nil {
		return asErrno(err)
	}
	c, err := fs.FindCgroup(b.ctx, "/"+b.id)
	if err != nil {
		return asErrno(err)
	}
	b.cgroup = c
	if b.r.MaxPids > 0 {
		return b.setPids(b.r.MaxPids)
	}
	return nil
}

// setPids bounds processes and threads; 0 is no bound.
func (b *box) setPids(limit int64) error {
	word := "max"
	if limit > 0 {
		word = strconv.FormatInt(limit, 10)
	}
	if err := b.cgroup.WriteControl(b.ctx, "pids.max", word); err != nil {
		return fmt.Errorf("pids limit %s: %w", word, asErrno(err))
	}
	return nil
}

// setLimits puts others in force while the payload runs.
func (b *box) setLimits(l limitSizes) error {
	if used, err := b.k.MemoryFile().TotalUsage(); err == nil && l.MaxMemoryBytes > 0 && used > uint64(l.MaxMemoryBytes) {
		return &remoteError{fmt.Sprintf("memory limit %d: %d bytes are in use", l.MaxMemoryBytes, used), unix.EBUSY}
	}
	if err := b.setPids(l.MaxPids); err != nil {
		return err
	}
	b.mu.Lock()
	b.r.limitSizes = l
	b.mu.Unlock()
	b.watchOnce()
	return nil
}

// watchOnce begins to watch the payload when there is something to watch.
func (b *box) watchOnce() {
	if l := b.limits(); l.MaxMemoryBytes > 0 || b.first.r.MaxProcesses > 0 {
		b.watching.Do(func() { go b.first.watch() })
	}
}

// watchInterval is how often the payload is looked at.
const watchInterval = 5 * time.Millisecond

// ownBytes are the sentry's, and not the payload's.
const ownBytes = 64 << 20

// preferred makes this process the one that the kernel kills where the container around den runs
// out of memory, and not den, nor the processes in which the payload's code runs: the memory is the sentry's.
func preferred() error {
	if probe.MemoryLimit() == 0 {
		return nil
	}
	err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrNotExist) {
		return nil // a masked /proc: it is best effort
	}
	return err
}

// watch kills what runs in the machine when it uses more than it may. The files that it writes
// into its root do not count where they lie in a file on disk.
//
// A call that fills memory does not hear of that before its end: if it goes on for long the sentry ends with it.
func (b *box) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for range tick.C {
		if reason := b.over(); reason != "" {
			b.killEverybody(reason)
			break
		}
	}
	last := b.used()
	for range tick.C {
		if limit := b.limits().MaxMemoryBytes; limit > 0 && b.used() > max(limit, last)+growthBytes && len(b.k.RootPIDNamespace().ThreadGroups()) > 0 {
			os.Exit(exitGreedy)
		}
	}
}

// growthBytes is what a payload that is being killed may take on top of what it has.
const growthBytes = 256 << 20

// used is the memory of the payload in bytes, with what the sentry itself needs for it.
func (b *box) used() int64 {
	var n int64
	if used, err := b.k.MemoryFile().TotalUsage(); err == nil {
		n = int64(used)
	}
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	own := int64(sample[0].Value.Uint64() - sample[1].Value.Uint64())
	return n + max(0, own-ownBytes)
}

// over says what the payload has too much of.
func (b *box) over() killReason {
	if limit := b.limits().MaxMemoryBytes; limit > 0 && b.used() > limit {
		return killMemory
	}
	if limit := b.r.MaxProcesses; limit > 0 && int64(len(b.k.RootPIDNamespace().ThreadGroups())) > limit {
		return killProcesses
	}
	return ""
}
