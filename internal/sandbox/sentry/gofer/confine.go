package gofer

import (
	"errors"
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"den/internal/sandbox/sentry/filter"
)

const (
	// maxMemoryBytes bounds what a gofer's process may write to. lisafs believes
	// any length of a message; who claims a long one ends his own gofer.
	maxMemoryBytes = 512 << 20
	// calmMemoryBytes is what the collector works to stay below.
	calmMemoryBytes = 192 << 20
)

// Confine takes from this process what serving trees does not need: memory
// without bound, core dumps, and all system calls but those of its trade.
// Trees are opened before.
//
// A C library makes threads by system calls that the filter does not know.
func Confine() error {
	if cgo {
		return errors.New("confine the gofer: this den was built with cgo: build it with CGO_ENABLED=0")
	}
	for what, limit := range map[int]uint64{unix.RLIMIT_DATA: maxMemoryBytes, unix.RLIMIT_CORE: 0} {
		var was unix.Rlimit
		if err := unix.Getrlimit(what, &was); err != nil {
			return fmt.Errorf("confine the gofer: getrlimit: %w", err)
		}
		limit = min(limit, was.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("confine the gofer: setrlimit: %w", err)
		}
	}
	debug.SetMemoryLimit(calmMemoryBytes)
	if err := filter.Install(filter.Gofer, 0); err != nil {
		return fmt.Errorf("confine the gofer: %w", err)
	}
	return nil
}
