// Package filter keeps the filters of system calls that sentries and gofers load into themselves.
//
// They bound what a payload can reach that has taken over its sentry, or what has taken over a gofer. To compile one takes up to 25 ms of
// processor time, more than all else in the start of a sentry, and needs rules that nothing else needs. So the
// programs are files of the source tree, made by this package's tests from gVisor's rules and den's
// (rules_test.go) and compared with these, with blanks for what differs between processes. Neither the kernel nor the
// processor makes a difference, but for its architecture.
package filter

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
)

//go:generate env CGO_ENABLED=0 GOARCH=amd64 go test -count=1 -run ^TestProgramsAreThoseOfTheRules$ -exec qemu-x86_64-static . -update
//go:generate env CGO_ENABLED=0 GOARCH=arm64 go test -count=1 -run ^TestProgramsAreThoseOfTheRules$ -exec qemu-aarch64-static . -update

// Names of filters: of a sentry on the outer container's network or on another one, by its platform, and of a gofer.
const (
	SystrapHost = "systrap-host"
	SystrapOwn  = "systrap-own"
	PtraceHost  = "ptrace-host"
	PtraceOwn   = "ptrace-own"
	Gofer       = "gofer"
)

// PriorityVariable is how a platform calls the priority that it gives to its threads.
const PriorityVariable = "systrap_sysmsg_thread_priority"

// ControlFD is the descriptor of a sentry's connection with den.
const ControlFD = 3

// Blanks, in the place of the 32-bit words that are compared. No rule has such values.
const (
	blankPid          = 0x5eed1d01
	blankPriorityLow  = 0x5eed1d02
	blankPriorityHigh = 0x5eed1d03
)

// Install loads the filter of that name into all threads of this process. priority is what a sentry's platform may
// give to its threads.
func Install(name string, priority uint64) error {
	instructions, err := program(name, priority)
	if err == nil && len(instructions) == 0 {
		err = unix.EINVAL
	}
	if err == nil {
		err = seccomp.SetFilter(instructions)
	}
	if err != nil {
		return fmt.Errorf("filter of system calls %s: %w", name, err)
	}
	return nil
}

// program is the filter of that name for this process.
func program(name string, priority uint64) ([]bpf.Instruction, error) {
	code, err := programs.ReadFile(file(name))
	if err != nil {
		return nil, err
	}
	instructions, err := bpf.ParseBytecode(code)
	if err != nil {
		return nil, err
	}
	for i := range instructions {
		switch k := &instructions[i].K; *k {
		case blankPid:
			*k = uint32(os.Getpid())
		case blankPriorityLow:
			*k = uint32(priority)
		case blankPriorityHigh:
			*k = uint32(priority >> 32)
		}
	}
	return instructions, nil
}

// file is where the filter of that name is.
func file(name string) string { return "programs/" + runtime.GOARCH + "/" + name + ".bpf" }
