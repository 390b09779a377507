package sentry

import (
	"fmt"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/cgroup2fs"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// limitPids puts what den starts into a cgroup of the sentry's own, which bounds
// its processes and threads. Each of them is several outside.
func (b *box) limitPids() error {
	if b.r.MaxPids <= 0 {
		return nil
	}
	tree, err := b.disconnected(cgroup2fs.Name, &vfs.MountOptions{})
	if err != nil {
		return err
	}
	fs := b.k.Cgroup2FS()
	if err := fs.RootCgroup().WriteControl(b.ctx, "cgroup.subtree_control", "+pids"); err != nil {
		return err
	}
	if err := b.k.VFS().MkdirAt(b.ctx, b.root, at(tree, containerID), &vfs.MkdirOptions{Mode: 0o755}); err != nil {
		return asErrno(err)
	}
	c, err := fs.FindCgroup(b.ctx, "/"+containerID)
	if err != nil {
		return asErrno(err)
	}
	if err := c.WriteControl(b.ctx, "pids.max", strconv.FormatInt(b.r.MaxPids, 10)); err != nil {
		return fmt.Errorf("%d: %w", b.r.MaxPids, err)
	}
	b.cgroup = c
	return nil
}

// watchInterval is how often the payload is looked at.
const watchInterval = 5 * time.Millisecond

// watch kills the payload when it uses more than it may. The files that it writes
// into its root do not count where they lie in a file on disk.
func (b *box) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for range tick.C {
		if reason := b.over(); reason != "" {
			b.mu.Lock()
			b.killed = reason
			b.mu.Unlock()
			b.k.Kill(linux.WaitStatusTerminationSignal(linux.SIGKILL))
			b.release()
			return
		}
	}
}

// over says what the payload has too much of.
func (b *box) over() killReason {
	if limit := b.r.MaxMemoryBytes; limit > 0 {
		if used, err := b.k.MemoryFile().TotalUsage(); err == nil && used > uint64(limit) {
			return killMemory
		}
	}
	if limit := b.r.MaxProcesses; limit > 0 && int64(len(b.k.RootPIDNamespace().ThreadGroups())) > limit {
		return killProcesses
	}
	return ""
}
