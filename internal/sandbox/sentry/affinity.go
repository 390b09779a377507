package sentry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/sched"
)

// maxProcessors bounds the numbers of processors, as unix.CPUSet does.
const maxProcessors = 1024

// parseProcessors reads a choice of processors, as cpuset(7) has it: "0-3,7".
func parseProcessors(list string) (set unix.CPUSet, err error) {
	bad := fmt.Errorf("cpuset-cpus %.100q: want numbers of processors such as 0-3,7: %w", list, errdefs.ErrInvalidArgument)
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first > last || last >= maxProcessors {
			return set, bad
		}
		for n := first; n <= last; n++ {
			set.Set(int(n))
		}
	}
	return set, nil
}

// keepTo puts the threads of a process and of all below it on processors, where what they start stays, too: a payload's
// own sched_setaffinity(2) is the sentry's to answer.
func keepTo(pid int, set *unix.CPUSet) error {
	done := map[int]bool{}
	for changed := true; changed; { // one that was not there yet may have been started by one that was not there
		changed = false
		for _, tid := range threads(pid) {
			if done[tid] {
				continue
			}
			err := unix.SchedSetaffinity(tid, set)
			if errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("cpuset-cpus: none of these processors may be used here: %w", errdefs.ErrInvalidArgument)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("cpuset-cpus: sched_setaffinity: %w", err)
			}
			done[tid], changed = true, true
		}
	}
	return nil
}

// keep keeps a sentry to the request's processors: before the payload is there, and those of its threads
// that were on their way then, once it runs.
func (b *builder) keep(c *child) error {
	if b.processors == nil {
		return nil
	}
	return keepTo(c.pid, b.processors)
}

// tellProcessors has a process count as many processors as it was given. Their numbers are the sentry's own.
func (b *box) tellProcessors(tg *kernel.ThreadGroup) error {
	if b.r.Processors <= 0 || b.r.Processors >= b.cores {
		return nil
	}
	mask := sched.NewCPUSet(uint(b.cores))
	for n := range b.r.Processors {
		mask.Set(uint(n))
	}
	return tg.Leader().SetCPUMask(mask)
}
