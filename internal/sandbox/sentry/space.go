package sentry

import (
	"errors"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/futex"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/usermem"
)

// A page fault of a payload is a signal and two switches, and what the sentry then has to do in the process's address
// space is a system call there, and two more. So den stands between gVisor's kernel and its systrap platform and spares
// the ones that help nobody; what a payload may reach stays the same.
//
//   - What is unmapped where nothing is mapped needs no call. gVisor unmaps each range that something new replaces.
//   - A private page that is read for the first time, or for the first time since a fork, is mapped for
//     writing at once if it may be written to: most are, and that would be another fault. Of a file that is
//     mapped so, what others write to it later is not seen there, which mmap(2) leaves open.
//   - A system call is patched in the process's text when it was called some times and not at its first: a patch
//     takes a page of text of the process's own and faults for it, and most processes end soon.
//   - At a fault nobody looks for a CPUID instruction, which does not trap (leaveCPUID).

// writeAhead is how much memory may be mapped for writing that is only read, in bytes, of a process since its
// execve(2) or its last fork(2). It bounds what is copied for nothing.
const writeAhead = 4 << 20

// patchAt is at which of its calls a system call is patched. A patch takes as long as 20 calls gain by it.
const patchAt = 8

// mostSites bounds what a process can have den remember of its system calls.
const mostSites = 4096

// mostSpans is how many ranges of a process's memory are told apart.
const mostSpans = 1024

// A leanPlatform spares work of the platform that it is made of, which is systrap.
type leanPlatform struct{ platform.Platform }

// NewAddressSpace implements platform.Platform.
func (p leanPlatform) NewAddressSpace() (platform.AddressSpace, error) {
	as, err := p.Platform.NewAddressSpace()
	if err != nil {
		return nil, err
	}
	return newLeanSpace(as), nil
}

// NewContext implements platform.Platform.
func (p leanPlatform) NewContext(ctx context.Context) platform.Context {
	return &leanContext{Context: p.Platform.NewContext(ctx)}
}

// A leanSpace is an address space of a leanPlatform.
type leanSpace struct {
	platform.AddressSpace

	mu     sync.Mutex // held during calls, which exclude each other anyway
	mapped spans

	ahead  atomic.Int64 // what is left of writeAhead
	taking atomic.Int32 // how many faults take from it just now

	sitesMu sync.Mutex
	sites   map[uintptr]int // calls, by the address behind the instruction
}

func newLeanSpace(as platform.AddressSpace) *leanSpace {
	s := &leanSpace{AddressSpace: as, sites: map[uintptr]int{}}
	s.ahead.Store(writeAhead)
	return s
}

// MapFile implements platform.AddressSpace.
func (s *leanSpace) MapFile(addr hostarch.Addr, f memmap.File, fr memmap.FileRange, at hostarch.AccessType, precommit bool) error {
	if s.taking.Load() > 0 {
		s.ahead.Add(-int64(fr.Length()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mapped.add(addr, addr+hostarch.Addr(fr.Length())) // also if it fails: who knows how far it got
	return s.AddressSpace.MapFile(addr, f, fr, at, precommit)
}

// Unmap implements platform.AddressSpace.
func (s *leanSpace) Unmap(addr hostarch.Addr, length uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mapped.remove(addr, addr+hostarch.Addr(length)) {
		s.AddressSpace.Unmap(addr, length)
	}
}

// PostFork implements platform.AddressSpace: all that is private has to be mapped again.
func (s *leanSpace) PostFork() {
	s.AddressSpace.PostFork()
	s.ahead.Store(writeAhead)
}

// faulting is what a memory manager of gVisor's kernel can do about a page fault.
type faulting interface {
	HandleUserFault(ctx context.Context, addr hostarch.Addr, at hostarch.AccessType, sp hostarch.Addr) error
	GetSharedFutexKey(ctx context.Context, addr hostarch.Addr) (futex.Key, error)
}

// write handles a read of an address like a write and says whether that was possible: only private memory
// is treated so, for a page of a file would be one that was written to.
func (s *leanSpace) write(ctx context.Context, m faulting, addr, sp hostarch.Addr) bool {
	if s.ahead.Load() <= 0 {
		return false
	}
	key, err := m.GetSharedFutexKey(ctx, addr.RoundDown()) // which says what kind of memory it is
	if err != nil {
		return false
	}
	if key.MappingIdentity != nil {
		key.MappingIdentity.DecRef(ctx)
	}
	if key.Kind != futex.KindSharedPrivate {
		return false
	}
	s.taking.Add(1)
	defer s.taking.Add(-1)
	return m.HandleUserFault(ctx, addr, hostarch.Write, sp) == nil
}

// early counts a call at a place of a process's text and says whether it is too early to patch it.
func (s *leanSpace) early(place uintptr) bool {
	s.sitesMu.Lock()
	defer s.sitesMu.Unlock()
	n := s.sites[place] + 1
	if n >= patchAt {
		return false
	}
	if n == 1 && len(s.sites) >= mostSites {
		clear(s.sites)
	}
	s.sites[place] = n
	return true
}

// A leanContext is a thread of a payload on a leanPlatform.
type leanContext struct {
	platform.Context
	memory leanMemory
	task   leanTask
}

// Switch implements platform.Context.
func (c *leanContext) Switch(ctx context.Context, mm platform.MemoryManager, ac *arch.Context64, cpu int32) (*linux.SignalInfo, hostarch.AccessType, error) {
	s := mm.AddressSpace().(*leanSpace)
	if c.memory.space != s || c.task.Context != ctx || c.task.ac != ac {
		c.memory = leanMemory{mm, s}
		c.task = leanTask{Context: ctx, space: s, mm: mm, ac: ac}
	}
	info, at, err := c.Context.Switch(&c.task, &c.memory, ac, cpu)
	if errors.Is(err, platform.ErrContextSignal) && at == hostarch.Read {
		m, ok := mm.(faulting)
		if ok && s.write(ctx, m, hostarch.Addr(info.Addr()), hostarch.Addr(ac.Stack())) {
			return nil, hostarch.NoAccess, platform.ErrContextInterrupt // for no reason, which may be
		}
	}
	return info, at, err
}

// PullFullState implements platform.Context.
func (c *leanContext) PullFullState(as platform.AddressSpace, ac *arch.Context64) error {
	return c.Context.PullFullState(as.(*leanSpace).AddressSpace, ac)
}

// leanMemory is a process's memory as the platform below is to see it.
type leanMemory struct {
	platform.MemoryManager
	space *leanSpace
}

// AddressSpace implements platform.MemoryManager.
func (m *leanMemory) AddressSpace() platform.AddressSpace { return m.space.AddressSpace }

// CopyIn implements usermem.IO. A platform reads a process's memory only to look for a CPUID instruction.
func (m *leanMemory) CopyIn(context.Context, hostarch.Addr, []byte, usermem.IOOpts) (int, error) {
	return 0, linuxerr.EFAULT
}

// leanTask is the thread of a payload that a platform patches system calls for; without one it leaves them as they are.
type leanTask struct {
	context.Context
	space *leanSpace
	mm    platform.MemoryManager
	ac    *arch.Context64
	code  [2]byte
}

// Value implements context.Context. A platform asks for the task after a system call that it could patch,
// and after an illegal instruction, which may be one that was patched while a thread was at it.
func (t *leanTask) Value(key any) any {
	if key == kernel.CtxTask && t.calls() && t.space.early(t.ac.IP()) {
		return nil
	}
	return t.Context.Value(key)
}

// calls reports whether the instruction before is a system call, which it is not at an illegal
// one that a patch has made: there it is the rest of a jump.
func (t *leanTask) calls() bool {
	const length = uintptr(len(t.code))
	_, err := t.mm.CopyIn(t.Context, hostarch.Addr(t.ac.IP()-length), t.code[:], usermem.IOOpts{IgnorePermissions: true})
	return err == nil && t.code == [...]byte{0x0f, 0x05} // of an x86: no other is patched
}

// spans are ranges of addresses, in order and apart: at least those in which something is mapped.
type spans []hostarch.AddrRange

// at are the indexes of those that end at or behind start and begin before end or there, which they touch.
func (s spans) at(start, end hostarch.Addr) (i, j int) {
	i = sort.Search(len(s), func(i int) bool { return s[i].End >= start })
	j = i + sort.Search(len(s)-i, func(j int) bool { return s[i+j].Start > end })
	return i, j
}

func (s *spans) add(start, end hostarch.Addr) {
	i, j := s.at(start, end)
	if i < j {
		start, end = min(start, (*s)[i].Start), max(end, (*s)[j-1].End)
	}
	s.replace(i, j, hostarch.AddrRange{Start: start, End: end})
}

// remove says whether there was something.
func (s *spans) remove(start, end hostarch.Addr) bool {
	i, j := s.at(start+1, end-1) // not those that only touch
	if i == j {
		return false
	}
	var rest []hostarch.AddrRange
	if first := (*s)[i]; first.Start < start {
		rest = append(rest, hostarch.AddrRange{Start: first.Start, End: start})
	}
	if last := (*s)[j-1]; last.End > end {
		rest = append(rest, hostarch.AddrRange{Start: end, End: last.End})
	}
	s.replace(i, j, rest...)
	return true
}

func (s *spans) replace(i, j int, by ...hostarch.AddrRange) {
	*s = slices.Replace(*s, i, j, by...)
	if n := len(*s); n > mostSpans {
		*s = spans{{Start: (*s)[0].Start, End: (*s)[n-1].End}}
	}
}
