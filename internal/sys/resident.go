package sys

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Rest gives back memory of a process that is about to wait: garbage, and the part of the program
// that is in use no more. It costs some milliseconds, and as many when that part is used again.
func Rest() {
	debug.FreeOSMemory()
	_ = dropProgram() // where proc does not show it, it stays
}

// dropProgram takes the program's own code and constants out of the resident memory of this
// process; what is used again comes back from the page cache, or the disk, as at the start.
// A start touches most of a large program, and what waits for requests little of it. Breakpoints
// of a debugger are lost.
func dropProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	ranges, err := unwritable(f, exe)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	for _, r := range ranges {
		// Where the page cache has huge pages, a touch would bring back two megabytes.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_NOHUGEPAGE) // a kernel may know none
		// A mapping of a file that was never written has nothing of its own: proc_pid_maps(5), madvise(2).
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

type addresses struct{ start, end uintptr }

// unwritable finds, in the text of /proc/PID/maps, where a file is mapped that nobody writes to there.
func unwritable(maps io.Reader, file string) (out []addresses, err error) {
	s := bufio.NewScanner(maps)
	for s.Scan() {
		// 00400000-01d39000 r-xp 00000000 fe:00 10457411      /usr/bin/den
		f := strings.Fields(s.Text())
		if len(f) < 6 || len(f[1]) != 4 || f[1][0] != 'r' || f[1][1] != '-' || f[1][3] != 'p' || !strings.HasSuffix(s.Text(), " "+file) {
			continue
		}
		var r addresses
		if _, err := fmt.Sscanf(f[0], "%x-%x", &r.start, &r.end); err != nil {
			return nil, fmt.Errorf("address %q: %w", f[0], err)
		}
		out = append(out, r)
	}
	return out, s.Err()
}
