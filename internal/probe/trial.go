package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A trial is the plan of a process that goes the way of a sandbox, as far as a
// rung may forbid it, and tells how far it came. It makes the calls that package sandbox
// makes, in the same order: a seccomp filter may forbid any one of them by itself.
type trial struct {
	*sys.Plan
	failed sys.Label
	// What a sandbox can do without.
	overlay, mknod, proc *sys.Cell
	// What the rung chroot needs; only tried outside of user namespaces.
	chroot, device *sys.Cell
}

// Descriptors of a trial's process.
const (
	trialIn  = 0 // a byte when its ids are mapped, its end when they could not be
	trialOut = 1
)

// The trial writes records of two words: this one before its ids are mapped, at
// the end either 0 and 0 or the errno and the address of what failed; and then its cells.
const (
	recordReady = 1 << 32
	recordBytes = sys.FailureBytes
	cellBytes   = 5 * 8
)

// noteRights begins the error for what only a mapped process can do.
const noteRights = "change the user"

func newTrial(s *scratch, uid int, userns bool) *trial {
	t := &trial{Plan: sys.NewPlan()}
	untried := -int64(unix.ECANCELED)
	for _, c := range []**sys.Cell{&t.overlay, &t.mknod, &t.proc, &t.chroot, &t.device} {
		*c = t.Cell(uint64(untried))
	}
	t.failed = t.Label()
	t.OnFatal(t.failed)
	t.Do(unix.SYS_CLOSE_RANGE, sys.Int(2), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	if userns {
		t.enter(uid)
	} else {
		t.tryChroot(s)
	}
	// The child is process 1 of the new namespaces, which only a proc of its own
	// can be mounted for. It shares the plan's memory: there is nothing to copy.
	child := t.Label()
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID
	t.Do(unix.SYS_CLONE, sys.Int(flags|unix.CLONE_VM|unix.CLONE_VFORK|int(unix.SIGCHLD)), sys.Int(0), sys.Int(0), sys.Int(0), sys.Int(0)).
		Zero(child).Note("create namespaces")
	t.Do(unix.SYS_WAIT4, sys.Int(-1), sys.Int(0), sys.Int(0), sys.Int(0)).MayFail()
	t.Exit(0)
	t.Mark(child)
	t.child(s)
	t.tell(t.Words(sys.Int(0), sys.Int(0)))
	t.Mark(t.failed)
	t.tell(sys.FailureRecord())
	return t
}

// tell writes what was found and ends the process.
func (t *trial) tell(record sys.Arg) {
	t.Do(unix.SYS_WRITE, sys.Int(trialOut), record, sys.Int(recordBytes)).MayFail()
	for _, c := range []*sys.Cell{t.overlay, t.mknod, t.proc, t.chroot, t.device} {
		t.Do(unix.SYS_WRITE, sys.Int(trialOut), c.Addr(), sys.Int(8)).MayFail()
	}
	t.Exit(0)
}

// enter makes a user namespace and waits until den has mapped its ids; without, one
// id of its own has to do for the rest. den itself joins such namespaces by setns.
func (t *trial) enter(uid int) {
	const note = "user namespace"
	mapped := t.Label()
	t.Do(unix.SYS_UNSHARE, sys.Int(unix.CLONE_NEWUSER|unix.CLONE_NEWNS)).Note(note)
	t.Do(unix.SYS_WRITE, sys.Int(trialOut), t.Words(sys.Int(uint64(recordReady)), sys.Int(0)), sys.Int(recordBytes))
	t.Do(unix.SYS_READ, sys.Int(trialIn), t.Cell(0).Addr(), sys.Int(1)).MayFail().Pos(mapped)
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
	t.Mark(mapped)
	t.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), t.Str("/proc/self/ns/mnt"), sys.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(fd).Note(note)
	t.Do(unix.SYS_SETNS, fd.Value(), sys.Int(unix.CLONE_NEWNS)).Note("enter a " + note)
	t.Close(fd)
}

// child does what a sandbox's first process does.
func (t *trial) child(s *scratch) {
	const note, device, root = "mount a file system", "clone a device", "switch the root"
	fs, m, dev, to := t.Cell(0), t.Cell(0), t.Cell(0), t.Cell(0)
	t.Do(unix.SYS_MOUNT, sys.Int(0), t.Str("/"), sys.Int(0), sys.Int(unix.MS_REC|unix.MS_SLAVE), sys.Int(0)).Note("make mounts private")
	t.FSOpen("tmpfs", fs).Note(note)
	t.FSCreate(fs).Note(note)
	t.FSMount(fs, m, 0).Note(note)
	t.Do(unix.SYS_MKNODAT, m.Value(), t.Str("null"), sys.Int(unix.S_IFCHR|0o600), sys.Int(unix.Mkdev(1, 3))).To(t.mknod).MayFail()
	t.CloneTree(sys.Int(unix.AT_FDCWD), "/dev/null", dev, false).Note(device)
	t.SetMountAttr(dev, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}, false).Note(device)
	if s != nil {
		t.tryOverlay(s)
	}
	t.tryProc()
	t.Do(unix.SYS_MOVE_MOUNT, m.Value(), t.Str(""), sys.Int(unix.AT_FDCWD), t.Str("/"), sys.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).Note("attach the root")
	t.Do(unix.SYS_FCHDIR, m.Value()).Note(root)
	t.Do(unix.SYS_PIVOT_ROOT, t.Str("."), t.Str(".")).Note(root)
	t.Do(unix.SYS_UMOUNT2, t.Str("."), sys.Int(unix.MNT_DETACH)).Note("leave the old root")
	t.Do(unix.SYS_CHDIR, t.Str("/")).Note(root)
	t.Do(unix.SYS_MKNODAT, sys.Int(unix.AT_FDCWD), t.Str("d"), sys.Int(unix.S_IFREG|0o600), sys.Int(0)).Note(device)
	t.OpenInRoot(sys.Int(unix.AT_FDCWD), "/d", unix.O_PATH, to).Note(device)
	t.MoveMount(dev.Value(), to.Value()).Note(device)
	t.Do(unix.SYS_SETHOSTNAME, t.Str("den"), sys.Int(3)).Note("hostname")
	t.Do(unix.SYS_PRCTL, sys.Int(unix.PR_CAPBSET_DROP), sys.Int(unix.CAP_SYS_ADMIN)).Note("drop from the bounding set")
	t.Do(unix.SYS_SETGROUPS, sys.Int(0), sys.Int(0)).Note(noteRights)
	t.Do(unix.SYS_SETRESGID, sys.Int(0), sys.Int(0), sys.Int(0)).Note(noteRights)
	t.Do(unix.SYS_SETRESUID, sys.Int(0), sys.Int(0), sys.Int(0)).Note(noteRights)
}

// tryOverlay makes an overlay of the flavour that den uses. It is volatile, or taking it apart
// would write back all that the file system below has not written yet.
func (t *trial) tryOverlay(s *scratch) {
	end := t.Label()
	fs := t.Cell(0)
	t.Do(unix.SYS_CHDIR, t.Str(s.dir)).To(t.overlay).Err(end)
	t.FSOpen("overlay", t.overlay).Err(end) // a kernel without overlays says so here
	t.Close(t.overlay)
	t.FSOpen("overlay", fs).Err(end)
	t.FSFlag(fs, "userxattr").To(t.overlay).Err(end)
	t.FSFlag(fs, "volatile").MayFail() // Linux 5.10
	for _, kv := range [][2]string{{"lowerdir", "l"}, {"upperdir", "u"}, {"workdir", "w"}} {
		t.FSString(fs, kv[0], kv[1]).To(t.overlay).Err(end)
	}
	t.FSCreate(fs).To(t.overlay).Err(end)
	t.FSMount(fs, t.overlay, 0).MayFail()
	t.Close(t.overlay)
	// The next trial's overlay has the same directories, and the kernel refuses them with this mark.
	t.Do(unix.SYS_UNLINKAT, sys.Int(unix.AT_FDCWD), t.Str("w/work/incompat/volatile/dirty"), sys.Int(0)).MayFail()
	for _, d := range []string{"w/work/incompat/volatile", "w/work/incompat"} {
		t.Do(unix.SYS_UNLINKAT, sys.Int(unix.AT_FDCWD), t.Str(d), sys.Int(unix.AT_REMOVEDIR)).MayFail()
	}
	t.Mark(end)
}

// tryProc mounts a proc of the new pid namespace.
func (t *trial) tryProc() {
	end := t.Label()
	fs := t.Cell(0)
	t.FSOpen("proc", fs).Err(end)
	t.FSCreate(fs).To(t.proc).Err(end)
	t.FSMount(fs, t.proc, 0).MayFail()
	t.Close(t.proc)
	t.Mark(end)
}

// tryChroot changes the root to what it is, and makes and opens a device, which a
// volume that is mounted nodev does not give.
func (t *trial) tryChroot(s *scratch) {
	t.Do(unix.SYS_CHROOT, t.Str("/")).To(t.chroot).MayFail()
	if s == nil {
		return
	}
	end := t.Label()
	node := t.Str(filepath.Join(s.dir, "n"))
	t.Do(unix.SYS_MKNODAT, sys.Int(unix.AT_FDCWD), node, sys.Int(unix.S_IFCHR|0o600), sys.Int(unix.Mkdev(1, 3))).To(t.device).Err(end)
	t.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), node, sys.Int(unix.O_RDWR|unix.O_CLOEXEC)).To(t.device).MayFail()
	t.Do(unix.SYS_CLOSE, t.device.Value()).MayFail()
	t.Do(unix.SYS_UNLINKAT, sys.Int(unix.AT_FDCWD), node, sys.Int(0)).MayFail()
	t.Mark(end)
}

// run walks the plan and reads what it found; mapIDs is called when a user
// namespace waits for its ids. The process may still be ending then.
func (t *trial) run(ctx context.Context, mapIDs func(pid int) error) (Trial, processes, error) {
	if err := ctx.Err(); err != nil {
		return Trial{}, nil, err
	}
	in, toChild, err := os.Pipe()
	if err != nil {
		return Trial{}, nil, err
	}
	defer toChild.Close()
	fromChild, out, err := os.Pipe()
	if err != nil {
		return Trial{}, nil, errors.Join(err, in.Close())
	}
	defer fromChild.Close()
	pid, err := t.Start("den-probe", []*os.File{in, out})
	if err := errors.Join(err, in.Close(), out.Close()); err != nil {
		return Trial{}, nil, err
	}
	r, err := t.follow(fromChild, func() error {
		err := mapIDs(pid)
		if err == nil {
			_, err = toChild.Write([]byte{0})
		}
		return errors.Join(err, toChild.Close())
	})
	return r, processes{pid}, err
}

// follow reads what the process has to tell. But for the ids those are a few
// system calls that wait for nobody: no cancellation.
func (t *trial) follow(from io.Reader, mapIDs func() error) (Trial, error) {
	var mapErr error
	b := make([]byte, recordBytes+cellBytes)
	if _, err := io.ReadFull(from, b[:recordBytes]); err != nil {
		return Trial{}, err
	}
	word := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[8*i:])) }
	if word(0) == recordReady {
		mapErr = mapIDs()
		if _, err := io.ReadFull(from, b[:recordBytes]); err != nil {
			return Trial{}, err
		}
	}
	if _, err := io.ReadFull(from, b[recordBytes:]); err != nil {
		return Trial{}, err
	}
	result := func(i int) unix.Errno { return cellErrno(b[8*i:]) }
	r := Trial{Overlay: result(2), Mknod: result(3), FreshProc: result(4), mapErr: mapErr, chroot: Chroot{Refused: result(5), Devices: result(6)}}
	if errno := unix.Errno(word(0)); errno != 0 {
		op := t.OpAt(uint64(word(1)))
		r.Refused = &Refusal{What: op.About(), Call: op.Call(), Errno: errno}
	}
	if mapErr != nil && r.Refused != nil && (r.Refused.What == noteRights || r.Refused.Errno == unix.EOVERFLOW) {
		r.Refused = nil // for want of ids, which is said elsewhere
	}
	return r, nil
}

// cellErrno is the error in a cell that holds a system call's result.
func cellErrno(b []byte) unix.Errno {
	return unix.Errno(max(0, -int64(binary.LittleEndian.Uint64(b))))
}
