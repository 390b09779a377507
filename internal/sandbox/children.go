package sandbox

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// reapEnv is the whole environment of a holder that executes den to reap.
const reapEnv = "_DEN_REAP=1"

// Reap reports whether this process is a holder that executed den to end what a
// payload without a pid namespace has left behind; then that is done. The first thing
// that a main function does.
//
// Such processes are the holder's children, or become so when their parents are
// killed, since it is the nearest subreaper. To find them needs more than the system
// calls of a plan. It is the holder that does it, because den may be dead.
func Reap() bool {
	if !slices.Equal(os.Environ(), []string{reapEnv}) {
		return false
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // they see its entry in /proc
	for {
		// Nobody else waits for them, so that the ids stay theirs.
		for _, pid := range children(os.Getpid()) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		switch pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); {
		case errors.Is(err, unix.ECHILD):
			_ = unix.CloseRange(fdLeases, math.MaxInt32, 0) // before the status pipe, see letGo
			return true
		case pid == 0: // one may have been missed that became a child meanwhile
			time.Sleep(orphanPause)
		}
	}
}

// orphanPause is how long a holder waits between two looks at what its payload has left behind.
const orphanPause = 5 * time.Millisecond

// reapOrphans is where the holder's life ends when its payload is gone: if there
// are other children it becomes what Reap is, from the program in descriptor fd.
func (p *program) reapOrphans(fd int) {
	alone, orphans, left := p.Label(), p.Label(), p.Label()
	p.Mark(left)
	p.Do(unix.SYS_WAIT4, sys.Int(-1), sys.Int(0), sys.Int(unix.WNOHANG), sys.Int(0)).Pos(left).Zero(orphans).Err(alone)
	// What keeps it from that may pass (memory, for one), and the leases are needed until the last is gone.
	pause := p.Words(sys.Int(0), sys.Int(int(orphanPause))) // struct timespec
	p.Mark(orphans)
	p.Do(unix.SYS_EXECVEAT, sys.Int(fd), p.Str(""), p.Strs([]string{"den-holder"}), p.Strs([]string{reapEnv}), sys.Int(unix.AT_EMPTY_PATH)).MayFail()
	p.Do(unix.SYS_PPOLL, sys.Int(0), sys.Int(0), pause, sys.Int(0), sys.Int(8)).MayFail()
	p.Goto(left)
	p.Mark(alone)
}

// children lists the direct children of pid, also those that have ended.
func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return scanChildren(pid)
	}
	var kids []int
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			kids = append(kids, n)
		}
	}
	return kids
}

// scanChildren is for kernels without the file above.
func scanChildren(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var kids []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && parent(n) == pid {
			kids = append(kids, n)
		}
	}
	return kids
}

// parent is 0 for a process that is gone.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := strings.LastIndexByte(string(b), ')') // a name may contain anything
	if err != nil || i < 0 {
		return 0
	}
	if f := strings.Fields(string(b[i+1:])); len(f) > 1 {
		n, _ := strconv.Atoi(f[1])
		return n
	}
	return 0
}
