package sentry

import (
	"fmt"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/probe"
)

// bounds are what the outer container's cgroup leaves for one sandbox. Without
// them a step that forks without end would take the processes that den and the sentry need
// themselves, and one that fills memory would have the kernel kill whoever is largest.
type bounds struct {
	// outerPids is the outer container's limit, processes what a sandbox may have of its own; 0 is none.
	outerPids, processes int64
	memoryBytes          int64
	// asked is the limit of memory that was asked for.
	asked int64
}

const (
	// reservedPids are for den, holders, gofers and the threads of sentries.
	reservedPids = 64
	// minProcesses is what a sandbox gets however little is left.
	minProcesses = 8
	// reservedMemoryBytes are for den and the sentry itself.
	reservedMemoryBytes = 96 << 20
	minMemoryBytes      = 32 << 20
	// fixedShare is the part of the memory around den that others are taken to keep at most.
	fixedShare = 8
)

// tasksPerProcess is what a process of a sandbox costs outside: systrap has one process with a thread
// for system calls and one for each processor that is busy; ptrace was seen
// to need twelve.
func tasksPerProcess(platform string) int64 {
	if platform == platformPtrace {
		return 12
	}
	return int64(min(2+runtime.NumCPU(), 4))
}

// outerBounds reads the limits around den.
func outerBounds(platform string) bounds {
	var b bounds
	l := probe.ReadLimits()
	if l.Pids > 0 {
		b.outerPids = l.Pids
		b.processes = max((l.Pids-l.PidsUsed-reservedPids)/tasksPerProcess(platform), minProcesses)
	}
	if l.MemoryBytes > 0 {
		// What others have now, and the kernel cannot take back, they will have for a while: a store in
		// memory for one. But other sandboxes are among them, and end.
		fixed := min(l.MemoryFixedBytes, l.MemoryBytes/fixedShare)
		b.memoryBytes = max(l.MemoryBytes-fixed-reservedMemoryBytes, minMemoryBytes)
	}
	return b
}

// apply puts the bounds into a request that asks for less or for none.
func (b *bounds) apply(r *request) {
	r.MaxProcesses = b.processes
	b.applyTo(&r.limitSizes)
}

func (b *bounds) applyTo(l *limitSizes) {
	b.asked = l.MaxMemoryBytes
	if b.memoryBytes > 0 && (l.MaxMemoryBytes <= 0 || l.MaxMemoryBytes > b.memoryBytes) {
		l.MaxMemoryBytes = b.memoryBytes
	}
}

// explain is a sentence about a kill that the user did not ask for, or empty.
func (b *bounds) explain(reason killReason) string {
	switch {
	case reason == killProcesses:
		return fmt.Sprintf("killed for having more than %d processes: the outer container's limit of %d tasks allows no more in a sandbox of this rung; raise it (docker run --pids-limit)", b.processes, b.outerPids)
	case reason == killMemory && (b.asked <= 0 || b.asked > b.memoryBytes && b.memoryBytes > 0):
		return fmt.Sprintf("killed for using more than %d MiB of memory, which is what the outer container's limit leaves to it; raise it (docker run --memory)", b.memoryBytes>>20)
	}
	return ""
}

// tooGreedy is about a payload that was ended with its sentry, and its changes.
func (b *bounds) tooGreedy() string {
	const end = " of memory at once, and its kernel ended with it: what it changed is lost"
	if b.asked > 0 && (b.memoryBytes <= 0 || b.asked <= b.memoryBytes) {
		return fmt.Sprintf("killed for using far more than %d MiB", b.asked>>20) + end
	}
	return fmt.Sprintf("killed for using far more than %d MiB, which is what the outer container's limit leaves to it,", b.memoryBytes>>20) + end + "; raise it (docker run --memory)"
}

// advise is what to do about a sentry that died with these words, or empty.
func (b *bounds) advise(ws unix.WaitStatus, words string) string {
	switch {
	case strings.Contains(words, "temporarily unavailable"), strings.Contains(words, "failed to create new OS thread"):
		return fmt.Sprintf("; the limit of tasks around den is used up (%d): raise it (docker run --pids-limit)", b.outerPids)
	case ws.Signaled() && ws.Signal() == unix.SIGKILL && words == "":
		return "; the kernel does that where memory runs out: raise the outer container's limit (docker run --memory)"
	}
	return ""
}

// outer are bounds of which what was asked for can change.
type outer struct {
	mu sync.Mutex
	b  bounds
}

func (o *outer) now() bounds {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b
}

func (o *outer) ask(memoryBytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.asked = memoryBytes
}
