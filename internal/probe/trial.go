package probe

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// result is what one trial found.
type result struct {
	namespaces, mount, overlay, mknod, proc unix.Errno
}

// trial builds the plan of one process that tries and writes what it found.
type trial struct {
	*sys.Plan
	cells []*sys.Cell
}

// untried is the result of a step that was not reached: the one before failed.
const untried = -int64(unix.ECANCELED)

// step returns a cell for the next result.
func (t *trial) step() *sys.Cell {
	v := untried
	c := t.Cell(uint64(v))
	t.cells = append(t.cells, c)
	return c
}

// try makes the trials in a process of its own, in a user namespace if userns.
func try(ctx context.Context, s *scratch, uid int, userns bool) (result, processes) {
	t := trial{Plan: sys.NewPlan()}
	out := t.Label()
	t.Do(unix.SYS_CLOSE_RANGE, sys.Int(3), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID
	if userns {
		flags |= unix.CLONE_NEWUSER
	}
	namespaces, mount, overlay, mknod, proc := t.step(), t.step(), t.step(), t.step(), t.step()
	t.Do(unix.SYS_UNSHARE, sys.Int(flags)).To(namespaces).Err(out)
	if userns {
		t.mapSelf(uid)
	}
	t.Do(unix.SYS_MOUNT, sys.Int(0), t.Str("/"), sys.Int(0), sys.Int(unix.MS_REC|unix.MS_PRIVATE), sys.Int(0)).To(mount).Err(out)
	t.tryTmpfs(mount, mknod)
	if s != nil {
		t.tryOverlay(s, overlay)
	}
	t.tryProc(proc)
	t.Mark(out)
	for _, c := range t.cells {
		t.Do(unix.SYS_WRITE, sys.Int(1), c.Addr(), sys.Int(8)).MayFail()
	}
	t.Exit(0)
	errs, p, err := t.run(ctx)
	if err != nil {
		return result{errno(err), errno(err), errno(err), errno(err), errno(err)}, p
	}
	return result{errs[0], errs[1], errs[2], errs[3], errs[4]}, p
}

// mapSelf maps the caller's own id to 0, which needs no right.
func (t *trial) mapSelf(uid int) {
	fd := t.Cell(0)
	for _, w := range [][2]string{
		{"setgroups", "deny"},
		{"uid_map", fmt.Sprintf("0 %d 1", uid)},
		{"gid_map", fmt.Sprintf("0 %d 1", os.Getegid())},
	} {
		t.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), t.Str("/proc/self/"+w[0]), sys.Int(unix.O_WRONLY)).To(fd).MayFail()
		t.Do(unix.SYS_WRITE, fd.Value(), t.Str(w[1]), sys.Int(len(w[1]))).MayFail()
		t.Close(fd)
	}
}

// tryTmpfs mounts a tmpfs over the root directory and makes a device node.
func (t *trial) tryTmpfs(mount, mknod *sys.Cell) {
	end := t.Label()
	fs, m := t.Cell(0), t.Cell(0)
	t.FSOpen("tmpfs", mount).Err(end)
	t.Do(unix.SYS_DUP, mount.Value()).To(fs).Err(end)
	t.FSCreate(fs).To(mount).Err(end)
	t.FSMount(fs, mount, 0).Err(end)
	t.Do(unix.SYS_DUP, mount.Value()).To(m).Err(end)
	t.Do(unix.SYS_MKNODAT, m.Value(), t.Str("null"), sys.Int(unix.S_IFCHR|0o600), sys.Int(unix.Mkdev(1, 3))).To(mknod).MayFail()
	t.Do(unix.SYS_MOVE_MOUNT, m.Value(), t.Str(""), sys.Int(unix.AT_FDCWD), t.Str("/"), sys.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).To(mount).MayFail()
	t.Mark(end)
}

// tryOverlay makes an overlay of the flavour that den uses.
func (t *trial) tryOverlay(s *scratch, overlay *sys.Cell) {
	end := t.Label()
	fs, m := t.Cell(0), t.Cell(0)
	t.Do(unix.SYS_CHDIR, t.Str(s.dir)).To(overlay).Err(end)
	t.FSOpen("overlay", overlay).Err(end)
	t.Do(unix.SYS_DUP, overlay.Value()).To(fs).Err(end)
	t.FSFlag(fs, "userxattr").To(overlay).Err(end)
	for _, kv := range [][2]string{{"lowerdir", "l"}, {"upperdir", "u"}, {"workdir", "w"}} {
		t.FSString(fs, kv[0], kv[1]).To(overlay).Err(end)
	}
	t.FSCreate(fs).To(overlay).Err(end)
	t.FSMount(fs, m, 0).To(overlay).MayFail()
	t.Mark(end)
}

// tryProc mounts a proc in the new pid namespace, which the first child is in.
// The child shares the plan's memory, so that its results are the parent's.
func (t *trial) tryProc(proc *sys.Cell) {
	child, end, after := t.Label(), t.Label(), t.Label()
	pid, fs := t.Cell(0), t.Cell(0)
	t.Do(unix.SYS_CLONE, sys.Int(unix.CLONE_VM|unix.CLONE_VFORK|int(unix.SIGCHLD)), sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(0)).To(pid).Zero(child).Err(after)
	t.Do(unix.SYS_WAIT4, sys.Int(-1), sys.Int(0), sys.Int(0), sys.Int(0)).MayFail()
	t.Goto(after)
	t.Mark(child)
	t.FSOpen("proc", proc).Err(end)
	t.Do(unix.SYS_DUP, proc.Value()).To(fs).Err(end)
	t.FSCreate(fs).To(proc).Err(end)
	t.FSMount(fs, proc, 0).MayFail()
	t.Mark(end)
	t.Exit(0)
	t.Mark(after)
}

// run walks the plan and reads what it wrote. The process may still be ending then.
func (t *trial) run(ctx context.Context) ([]unix.Errno, processes, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	pid, err := t.Start("den-probe", []*os.File{nil, w})
	w.Close()
	if err != nil {
		return nil, nil, err
	}
	// A few system calls that do not wait for anybody: no cancellation.
	b := make([]byte, 8*len(t.cells))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, processes{pid}, err
	}
	errs := make([]unix.Errno, len(t.cells))
	for i := range errs {
		if v := int64(binary.LittleEndian.Uint64(b[8*i:])); v < 0 {
			errs[i] = unix.Errno(-v)
		}
	}
	return errs, processes{pid}, nil
}
