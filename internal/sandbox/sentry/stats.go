package sentry

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/mm"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/usermem"

	"den/internal/sandbox"
)

// stats is Inspector.Stats, as far as the sentry knows it.
func (b *box) stats() *sandbox.Stats {
	cpu := b.k.CPUStats()
	b.mu.Lock()
	limits := b.r.limitSizes
	b.mu.Unlock()
	s := &sandbox.Stats{
		Read: time.Now(), CPUTotal: cpu.UserTime + cpu.SysTime, CPUUser: cpu.UserTime, CPUSystem: cpu.SysTime,
		MemoryLimitBytes: uint64(limits.MaxMemoryBytes), Pids: uint64(len(b.tasks())), PidsLimit: uint64(limits.MaxPids),
	}
	if used, err := b.k.MemoryFile().TotalUsage(); err == nil {
		s.MemoryBytes = used
		b.mu.Lock()
		b.peak = max(b.peak, used)
		s.MemoryPeakBytes = b.peak
		b.mu.Unlock()
	}
	if own, err := b.netStack(); err == nil {
		s.Interfaces = devices(own)
	}
	return s
}

// devices counts what passed each device but the loopback one.
func devices(s *stack.Stack) []sandbox.InterfaceStats {
	var all []sandbox.InterfaceStats
	for _, nic := range s.NICInfo() {
		if nic.Flags.Loopback {
			continue
		}
		st := nic.Stats
		all = append(all, sandbox.InterfaceStats{
			Name: nic.Name, RxBytes: st.Rx.Bytes.Value(), RxPackets: st.Rx.Packets.Value(), TxBytes: st.Tx.Bytes.Value(), TxPackets: st.Tx.Packets.Value(),
			RxErrors: st.MalformedL4RcvdPackets.Value(), RxDropped: st.DisabledRx.Packets.Value(), TxDropped: st.TxPacketsDroppedNoBufferSpace.Value(),
		})
	}
	slices.SortFunc(all, func(x, y sandbox.InterfaceStats) int { return strings.Compare(x.Name, y.Name) })
	return all
}

// processes is Inspector.Processes.
func (b *box) processes() []sandbox.Process {
	names := b.users()
	ns := b.pids
	var all []sandbox.Process
	for _, tg := range b.groups() {
		leader := tg.Leader()
		if leader == nil {
			continue
		}
		cpu := tg.CPUStats()
		p := sandbox.Process{
			Pid: int(ns.IDOfThreadGroup(tg)), UID: uint32(leader.Credentials().EffectiveKUID), State: leader.StateStatus()[:1], TTY: "?",
			Started: time.Unix(0, leader.StartTime().Nanoseconds()), CPU: cpu.UserTime + cpu.SysTime, Name: leader.Name(),
		}
		if parent := leader.Parent(); parent != nil {
			p.PPid = int(ns.IDOfThreadGroup(parent.ThreadGroup()))
		}
		if p.User = names[p.UID]; p.User == "" {
			p.User = strconv.FormatUint(uint64(p.UID), 10)
		}
		if tty := tg.TTY(); tty != nil {
			p.TTY = "pts/" + strconv.FormatUint(uint64(tty.Index()), 10)
		}
		b.memoryOf(leader, &p)
		all = append(all, p)
	}
	slices.SortFunc(all, func(x, y sandbox.Process) int { return x.Pid - y.Pid })
	return all
}

// maxCommandBytes bounds how much of a command line is shown.
const maxCommandBytes = 64 << 10

// memoryOf fills in what is known from a process's memory; one that has ended has none.
func (b *box) memoryOf(t *kernel.Task, p *sandbox.Process) {
	var m *mm.MemoryManager
	t.WithMuLocked(func(t *kernel.Task) { m = t.MemoryManager() })
	if m == nil || !m.IncUsers() {
		return
	}
	defer m.DecUsers(b.ctx)
	p.RSSBytes = m.ResidentSetSize()
	start, end := m.ArgvStart(), m.ArgvEnd()
	if start == 0 || end <= start {
		return
	}
	buf := make([]byte, min(uint64(end-start), maxCommandBytes))
	n, _ := m.CopyIn(b.ctx, start, buf, usermem.IOOpts{IgnorePermissions: true})
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		p.Command = append(p.Command, string(arg))
	}
}

// users are the names in the sandbox's passwd, by number.
func (b *box) users() map[uint32]string {
	names := map[uint32]string{}
	b.readPasswd(func(r io.Reader) {
		text, _ := io.ReadAll(r)
		for line := range strings.Lines(string(text)) {
			f := strings.SplitN(line, ":", 4)
			if len(f) < 4 {
				continue
			}
			if uid, err := strconv.ParseUint(f[2], 10, 32); err == nil && names[uint32(uid)] == "" {
				names[uint32(uid)] = f[0]
			}
		}
	})
	return names
}

// readPasswd gives the sandbox's /etc/passwd to read, if it is a file.
func (b *box) readPasswd(read func(io.Reader)) {
	ctx := b.ctx
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	v := b.k.VFS()
	d, err := v.GetDentryAt(ctx, b.root, follow(root, "/etc/passwd"), &vfs.GetDentryOptions{})
	if err != nil {
		return
	}
	defer d.DecRef(ctx)
	p := &vfs.PathOperation{Root: root, Start: d}
	st, err := v.StatAt(ctx, b.root, p, &vfs.StatOptions{Mask: linux.STATX_TYPE})
	if err != nil || st.Mode&linux.S_IFMT != linux.S_IFREG { // to open a pipe could wait
		return
	}
	f, err := v.OpenAt(ctx, b.root, p, &vfs.OpenOptions{Flags: linux.O_RDONLY})
	if err != nil {
		return
	}
	defer f.DecRef(ctx)
	read(io.LimitReader(file{ctx, f}, maxPasswdBytes))
}
