package sentry

import (
	"encoding/binary"
	"math/rand"
	"testing"

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

// pages is an address space that knows which of its pages are mapped, and counts calls.
type pages struct {
	platform.AddressSpace
	mapped map[hostarch.Addr]bool
	unmaps int
}

func (p *pages) MapFile(addr hostarch.Addr, _ memmap.File, fr memmap.FileRange, _ hostarch.AccessType, _ bool) error {
	for a := addr; a < addr+hostarch.Addr(fr.Length()); a += hostarch.PageSize {
		p.mapped[a] = true
	}
	return nil
}

func (p *pages) Unmap(addr hostarch.Addr, length uint64) {
	p.unmaps++
	for a := addr; a < addr+hostarch.Addr(length); a += hostarch.PageSize {
		delete(p.mapped, a)
	}
}

func (p *pages) PostFork() {}

// Whatever is mapped and unmapped, nothing stays mapped that was unmapped, and what was not mapped is not unmapped
// as long as there are few ranges.
func TestUnmappingNothingIsSpared(t *testing.T) {
	for _, c := range []struct{ name, sparse string }{{"dense", ""}, {"sparse", "more ranges than are told apart"}} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewSource(1))
			space, at, spared := uint64(64), 1, 0
			if c.sparse != "" {
				space, at = 8*mostSpans, 2
			}
			p, want := &pages{mapped: map[hostarch.Addr]bool{}}, &pages{mapped: map[hostarch.Addr]bool{}}
			s := newLeanSpace(p)
			for i := range 20000 {
				addr := hostarch.Addr(r.Uint64()%space) * hostarch.Addr(at) * hostarch.PageSize
				length := (1 + r.Uint64()%4) * hostarch.PageSize
				if c.sparse != "" {
					length = hostarch.PageSize
				}
				if r.Intn(3) > 0 {
					fr := memmap.FileRange{End: length}
					if err := s.MapFile(addr, nil, fr, hostarch.Read, false); err != nil {
						t.Fatal(err)
					}
					_ = want.MapFile(addr, nil, fr, hostarch.Read, false)
				} else {
					there := false
					for a := addr; a < addr+hostarch.Addr(length); a += hostarch.PageSize {
						there = there || want.mapped[a]
					}
					before := p.unmaps
					s.Unmap(addr, length)
					want.Unmap(addr, length)
					if p.unmaps == before {
						spared++
					} else if !there && c.sparse == "" {
						t.Fatalf("step %d: unmapped where nothing is mapped", i)
					}
				}
				for j := 1; j < len(s.mapped); j++ {
					if s.mapped[j-1].End >= s.mapped[j].Start {
						t.Fatalf("step %d: ranges %v and %v", i, s.mapped[j-1], s.mapped[j])
					}
				}
				if len(s.mapped) > mostSpans {
					t.Fatalf("step %d: %d ranges", i, len(s.mapped))
				}
			}
			if len(p.mapped) != len(want.mapped) || spared == 0 {
				t.Errorf("%d pages are mapped, and should be %d; %d calls spared", len(p.mapped), len(want.mapped), spared)
			}
			for a := range p.mapped {
				if !want.mapped[a] {
					t.Errorf("%#x is mapped", a)
				}
			}
		})
	}
}

// fakeMemory is a process's memory of three pages: private, private and only to be read, and a file's.
type fakeMemory struct {
	platform.MemoryManager
	space  *leanSpace
	writes int
	text   []byte // from address 0
}

func (m *fakeMemory) AddressSpace() platform.AddressSpace { return m.space }

func (m *fakeMemory) CopyIn(_ context.Context, addr hostarch.Addr, dst []byte, _ usermem.IOOpts) (int, error) {
	if int(addr)+len(dst) > len(m.text) {
		return 0, linuxerr.EFAULT
	}
	return copy(dst, m.text[addr:]), nil
}

const (
	private  = hostarch.Addr(1 << 20)
	readOnly = hostarch.Addr(2 << 20)
	shared   = hostarch.Addr(3 << 20)
)

func (m *fakeMemory) GetSharedFutexKey(_ context.Context, addr hostarch.Addr) (futex.Key, error) {
	switch {
	case addr%hostarch.PageSize != 0:
		return futex.Key{}, linuxerr.EINVAL
	case addr == shared:
		return futex.Key{Kind: futex.KindSharedMappable}, nil
	case addr == private || addr == readOnly:
		return futex.Key{Kind: futex.KindSharedPrivate}, nil
	}
	return futex.Key{}, linuxerr.EFAULT
}

func (m *fakeMemory) HandleUserFault(_ context.Context, addr hostarch.Addr, at hostarch.AccessType, _ hostarch.Addr) error {
	if !at.Write || addr.RoundDown() != private {
		return linuxerr.EPERM
	}
	m.writes++
	return m.space.MapFile(private, nil, memmap.FileRange{End: 1 << 20}, hostarch.ReadWrite, false)
}

// faulter is a thread that always meets the same page fault.
type faulter struct {
	platform.Context
	info linux.SignalInfo
	at   hostarch.AccessType
}

func (f *faulter) Switch(context.Context, platform.MemoryManager, *arch.Context64, int32) (*linux.SignalInfo, hostarch.AccessType, error) {
	return &f.info, f.at, platform.ErrContextSignal
}

func faultAt(addr hostarch.Addr, at hostarch.AccessType) *leanContext {
	f := &faulter{at: at, info: linux.SignalInfo{Signo: int32(linux.SIGSEGV)}}
	f.info.SetAddr(uint64(addr))
	return &leanContext{Context: f}
}

// What is private is mapped for writing when it is read, up to so much since the last fork; all else is left to the kernel.
func TestReadPrivateMemoryIsMappedForWriting(t *testing.T) {
	m := &fakeMemory{space: newLeanSpace(&pages{mapped: map[hostarch.Addr]bool{}})}
	ac := &arch.Context64{}
	handled := func(addr hostarch.Addr, at hostarch.AccessType) bool {
		t.Helper()
		info, gotAt, err := faultAt(addr, at).Switch(context.Background(), m, ac, 0)
		//nolint:errorlint // as gVisor's kernel compares them
		if err == platform.ErrContextInterrupt {
			return true
		}
		if info == nil || hostarch.Addr(info.Addr()) != addr || gotAt != at || err != platform.ErrContextSignal { //nolint:errorlint // the same
			t.Fatalf("a fault at %#x becomes %v, %v, %v", addr, info, gotAt, err)
		}
		return false
	}
	for _, c := range []struct {
		name string
		addr hostarch.Addr
		at   hostarch.AccessType
		want bool
	}{
		{"a read", private + 5, hostarch.Read, true},
		{"a write", private, hostarch.Write, false},
		{"an instruction", private, hostarch.Execute, false},
		{"what may not be written to", readOnly, hostarch.Read, false},
		{"a file", shared, hostarch.Read, false},
		{"nothing", 0, hostarch.Read, false},
	} {
		if got := handled(c.addr, c.at); got != c.want {
			t.Errorf("%s: handled %v", c.name, got)
		}
	}
	for range 2 {
		n := 0
		for handled(private, hostarch.Read) {
			if n++; n > writeAhead {
				t.Fatal("there is no end")
			}
		}
		if n < 2 {
			t.Errorf("%d reads handled", n)
		}
		m.space.PostFork()
	}
}

// A call is patched when it was made some times, and an illegal instruction is the task's at once: it may be a patch.
func TestSystemCallsArePatchedWhenTheyAreFrequent(t *testing.T) {
	m := &fakeMemory{space: newLeanSpace(nil), text: make([]byte, 4096)}
	copy(m.text[100:], []byte{0xb8, 1, 0, 0, 0, 0x0f, 0x05})          // mov $1,%eax; syscall
	copy(m.text[200:], []byte{0xff, 0x24, 0x25, 0, 0, 0x06, 0, 0x90}) // jmp *0x60000, which ends with an illegal instruction
	binary.LittleEndian.PutUint32(m.text[203:], 0x60000)
	ac := &arch.Context64{}
	task := &leanTask{Context: taskContext{context.Background()}, space: m.space, mm: m, ac: ac}
	for i := 1; i <= patchAt+1; i++ {
		ac.SetIP(107)
		if got, want := task.Value(kernel.CtxTask) != nil, i >= patchAt; got != want {
			t.Errorf("call %d: there is a task: %v", i, got)
		}
	}
	for _, ip := range []uintptr{205, 4095, 1 << 40} {
		ac.SetIP(ip)
		if task.Value(kernel.CtxTask) == nil {
			t.Errorf("behind %d: there is no task", ip)
		}
	}
	if task.Value("other") != "value" {
		t.Error("other values are gone")
	}
	for ip := range uintptr(3 * mostSites) {
		m.space.early(1<<32 + ip)
	}
	if len(m.space.sites) > mostSites {
		t.Errorf("%d places are remembered", len(m.space.sites))
	}
}

// taskContext has a task, so to speak.
type taskContext struct{ context.Context }

func (c taskContext) Value(key any) any {
	if key == kernel.CtxTask {
		return c
	}
	return "value"
}
