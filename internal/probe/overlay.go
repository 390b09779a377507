package probe

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Overlay tries one fact by itself: an overlay with its upper directory in dir, or the
// nearest directory above, made by the process as it is. 0 says that it works. The overlay is attached
// nowhere, and as after Gather a process that nobody waits for takes it apart.
func Overlay(dir string) unix.Errno {
	e, p := tryOverlayAlone(nearest(dir))
	go p.reap()
	return e
}

func tryOverlayAlone(dir string) (unix.Errno, processes) {
	s, err := newScratch(dir)
	if err != nil {
		return errno(err), nil
	}
	in, out, err := os.Pipe()
	if err != nil {
		s.remove()
		return errno(err), nil
	}
	defer in.Close()
	t := &trial{Plan: sys.NewPlan()}
	untried := -int64(unix.ECANCELED)
	t.overlay = t.Cell(uint64(untried))
	t.Do(unix.SYS_CLOSE_RANGE, sys.Int(1), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	t.tryOverlay(s)
	t.Do(unix.SYS_WRITE, sys.Int(0), t.overlay.Addr(), sys.Int(8)).MayFail()
	t.Do(unix.SYS_CLOSE_RANGE, sys.Int(0), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	s.sweep(t.Plan)
	t.Exit(0)
	pid, err := t.Start("den-probe", []*os.File{out})
	out.Close()
	if err != nil {
		s.remove()
		return errno(err), nil
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(in, b); err != nil {
		return unix.EIO, processes{pid}
	}
	return cellErrno(b), processes{pid}
}
