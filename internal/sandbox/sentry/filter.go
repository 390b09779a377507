package sentry

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"

	"den/internal/sandbox"
)

// The sentry's own filter of system calls bounds what a payload can reach that has taken over the
// sentry. To compile it takes 25 ms of processor time, more than all else in the start of a sentry, and needs rules that nothing
// else needs. So the programs are files of the source tree, with blanks for what differs between sentries.
// compile_test.go makes them, and the tests compare them with what gVisor's rules say.
//
//go:generate env CGO_ENABLED=0 GOARCH=amd64 go test -count=1 -run ^TestFiltersAreThoseOfTheRules$ . -update
//go:generate env CGO_ENABLED=0 GOARCH=arm64 go test -count=1 -run ^TestFiltersAreThoseOfTheRules$ -exec qemu-aarch64-static . -update

// Blanks, in the place of the 32-bit words that are compared. No rule has such values.
const (
	blankPid          = 0x5eed1d01
	blankPriorityLow  = 0x5eed1d02
	blankPriorityHigh = 0x5eed1d03
)

// priorityVariable is how gVisor's platform calls the priority that it gives to its threads.
const priorityVariable = "systrap_sysmsg_thread_priority"

// filterFile is where the filter of sentries is that run code on a platform and have a network.
func filterFile(platformName, network string) string {
	kind := "own"
	if network == sandbox.NetworkHost {
		kind = "host"
	}
	return "filters/" + runtime.GOARCH + "/" + platformName + "-" + kind + ".bpf"
}

// fillIn is the program for this process.
func fillIn(code []byte, info platform.SeccompInfo) ([]bpf.Instruction, error) {
	instructions, err := bpf.ParseBytecode(code)
	if err != nil {
		return nil, err
	}
	priority := info.Variables().GetUint64(priorityVariable)
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

// installFilter loads the filter of this process.
func installFilter(platformName, network string, info platform.SeccompInfo) error {
	code, err := compiledFilters.ReadFile(filterFile(platformName, network))
	if err != nil {
		return fmt.Errorf("the sentry's filter: %w", err)
	}
	instructions, err := fillIn(code, info)
	if err == nil && len(instructions) == 0 {
		err = unix.EINVAL
	}
	if err == nil {
		err = seccomp.SetFilter(instructions)
	}
	if err != nil {
		return fmt.Errorf("the sentry's filter: %w", err)
	}
	return nil
}
