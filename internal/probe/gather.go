package probe

import (
	"context"
	"errors"
	"math/bits"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Gather tries what the choice of rung and of snapshot driver depends on. dir
// is the store's directory or the nearest existing one above; its contents
// stay as they are. What cannot be tried is reported as the error that stood in the way.
//
// Taking the trials' namespaces and directories apart takes longer than the
// trials: processes that nobody waits for, but to reap them, do it.
func Gather(ctx context.Context, dir string) Facts {
	f, processes := gather(ctx, dir)
	go processes.reap()
	return f
}

// processes are children that end by themselves.
type processes []int

func (p processes) reap() {
	for _, pid := range p {
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

func gather(ctx context.Context, dir string) (Facts, processes) {
	f := Facts{UID: os.Geteuid()}
	st := sys.OwnStatus()
	f.CapEff, f.CapBnd, f.NoNewPrivs = st.Effective, st.Bounding, st.NoNewPrivs
	f.Security = security(os.DirFS("/"), st)
	f.InUserns = !sys.InInitialUserns()
	f.OneID = f.InUserns && oneID()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	dir = nearest(dir)
	f.FSType, _ = sys.FSName(dir)
	f.Reflink = tryReflink(dir)
	f.NoExec = noExec(dir)
	f.Cgroup, f.CgroupErr = cgroups()
	f.BlockWeight = blockWeight(os.DirFS("/"))
	f.IDs = idRange(&f)
	p := f.tryNamespaces(ctx, dir)
	if f.Userns.Refused != nil {
		f.Settings = settings()
	}
	return f, p
}

// tryNamespaces makes the trials: as the process is, and inside a user namespace
// unless it already works in one.
func (f *Facts) tryNamespaces(ctx context.Context, dir string) (p processes) {
	scratch, err := newScratch(dir)
	if err == nil {
		defer func() { p = append(p, scratch.removeLater()...) }()
	}
	try := func(userns bool) Trial {
		r, more, trialErr := newTrial(scratch, f.UID, userns).run(ctx, func(pid int) error {
			if f.IDs.Missing != "" {
				return errors.New(f.IDs.Missing)
			}
			return f.IDs.Map(ctx, pid)
		})
		p = append(p, more...)
		if trialErr != nil {
			r = untried(unfinished(trialErr))
		}
		if scratch == nil {
			r.Overlay = errno(err)
		}
		if inTheWay(r.Overlay) {
			f.Untried = r.Overlay.Error()
		}
		return r
	}
	if !mounted("/proc") {
		// Where den starts programs of its own from.
		f.Trial = untried(&Refusal{What: noProc, Errno: unix.ENOENT})
		f.Userns, f.Chroot = f.Trial, f.Trial.chroot
		return p
	}
	f.Trial = try(false)
	f.Chroot = f.Trial.chroot
	if f.Refused == nil && f.InUserns {
		f.Userns = untried(&Refusal{What: "not tried: this process is in one", Errno: unix.ECANCELED})
		return p
	}
	f.Userns = try(true)
	if f.Userns.mapErr != nil && f.IDs.Missing == "" {
		f.IDs.Missing = f.Userns.mapErr.Error()
	}
	return p
}

// unfinished is the refusal of a trial that did not come to an answer.
func unfinished(err error) *Refusal {
	if errors.Is(err, context.DeadlineExceeded) {
		return &Refusal{What: "not tried to the end in time: the machine is busy", Errno: unix.ETIMEDOUT, Unfinished: true}
	}
	return &Refusal{What: err.Error(), Errno: errno(err)}
}

// noProc is why nothing can be tried without /proc.
const noProc = "/proc is not mounted, and den needs it to start anything"

// mounted reports whether dir is another file system than its parent.
func mounted(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(dir+"/..", &b) == nil && (a.Dev != b.Dev || a.Ino == b.Ino)
}

// untried is a trial that ended before it began.
func untried(r *Refusal) Trial {
	const e = unix.ECANCELED
	return Trial{Refused: r, Overlay: e, Mknod: e, FreshProc: e, chroot: Chroot{Refused: e, Devices: e}}
}

// nearest is dir or the closest directory above it that exists.
func nearest(dir string) string {
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return up
		}
		dir = up
	}
}

// BareTmpfs reports whether dir lies on a tmpfs that keeps no user attributes, as before Linux 6.6, so that no
// overlay den makes can have its upper directory there.
func (f *Facts) BareTmpfs() bool {
	return f.FSType == "tmpfs" && (f.Overlay == unix.EOPNOTSUPP || f.Userns.Overlay == unix.EOPNOTSUPP)
}

// inTheWay reports whether e is about the disk and its permissions, and not about overlays.
func inTheWay(e unix.Errno) bool {
	switch e {
	case unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EACCES, unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return true
	}
	return false
}

// errno is the system's reason for err.
func errno(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	if err != nil {
		return unix.EIO
	}
	return 0
}

// scratch is a directory with an overlay's parts.
type scratch struct{ dir string }

func newScratch(dir string) (_ *scratch, err error) {
	s := &scratch{}
	if s.dir, err = os.MkdirTemp(dir, ".den-probe-"); err != nil {
		return nil, err
	}
	for _, sub := range []string{"l", "u", "w"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(s.dir, sub), 0o755))
	}
	// The overlay stores what it has to remember in user.overlay.* attributes;
	// tmpfs has them from Linux 6.6 on.
	if err == nil {
		err = unix.Setxattr(filepath.Join(s.dir, "u"), "user.den", []byte("y"), 0)
	}
	if err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

// remove undoes newScratch; the kernel leaves an empty directory in work.
func (s *scratch) remove() {
	_ = os.Remove(filepath.Join(s.dir, "w", "work"))
	_ = os.RemoveAll(s.dir)
}

// removeLater is remove in a process of its own.
func (s *scratch) removeLater() processes {
	p := sys.NewPlan()
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(0), sys.Int(^uint32(0)), sys.Int(0)).MayFail()
	s.sweep(p)
	p.Exit(0)
	pid, err := p.Start("den-probe", nil)
	if err != nil {
		s.remove()
		return nil
	}
	return processes{pid}
}

// sweep is remove as part of a plan.
func (s *scratch) sweep(p *sys.Plan) {
	for _, d := range []string{"w/work", "w", "u", "l", ""} {
		p.Do(unix.SYS_UNLINKAT, sys.Int(unix.AT_FDCWD), p.Str(filepath.Join(s.dir, d)), sys.Int(unix.AT_REMOVEDIR)).MayFail()
	}
}

// tryReflink clones an empty file: file systems that cannot refuse it all the same.
func tryReflink(dir string) unix.Errno {
	open := func() (int, error) { return unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600) }
	a, err := open()
	if err != nil {
		return errno(err)
	}
	defer unix.Close(a)
	b, err := open()
	if err != nil {
		return errno(err)
	}
	defer unix.Close(b)
	return errno(unix.IoctlFileClone(b, a))
}

// noExec asks the mount: the flag is not to be tried without a program in dir.
func noExec(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&unix.ST_NOEXEC != 0
}

// settings lists the kernel's switches that forbid user namespaces.
func settings() []string {
	var found []string
	for _, s := range []struct{ name, bad string }{
		{"kernel.unprivileged_userns_clone", "0"}, // Debian's kernels
		{"user.max_user_namespaces", "0"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1"}, // Ubuntu 23.10
	} {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s.name, ".", "/"))
		if v := strings.TrimSpace(string(b)); err == nil && v == s.bad {
			found = append(found, s.name+"="+v)
		}
	}
	return found
}

// hasAll reports whether s has every capability in bits.
func hasAll(s sys.CapSet, caps ...int) bool {
	var want sys.CapSet
	for _, c := range caps {
		want |= 1 << c
	}
	return bits.OnesCount64(uint64(s&want)) == len(caps)
}
