package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sys"
)

// enteredEnv marks the process that EnterUserns made, so that it never tries again.
const enteredEnv = "_DEN_USERNS=1"

// Entered reports whether EnterUserns made this process.
func Entered() bool { return slices.Contains(os.Environ(), enteredEnv) }

// EnterUserns replaces the calling process by the same program, with argv and
// env, inside a new user and mount namespace mapped as f.IDs says. The process
// keeps its id, its streams and its place in the process tree, so that signals
// and exit codes need nobody in between. It returns only on error, before
// anything has changed.
//
// A threaded process cannot enter a user namespace. So a child makes one, den maps
// it with every way to say what goes wrong, and then den executes a plan, which
// has one thread, enters, and executes den again.
func EnterUserns(f probe.Facts, argv, env []string) error {
	if f.IDs.Missing != "" {
		return fmt.Errorf("user namespace: %s%w", f.IDs.Missing, hidden{errdefs.ErrFailedPrecondition})
	}
	child, err := newUserns()
	if err != nil {
		return fmt.Errorf("user namespace: %w%w", err, hidden{errdefs.ErrFailedPrecondition})
	}
	if err = f.IDs.Map(context.Background(), child.pid); err != nil {
		err = fmt.Errorf("user namespace: %w%w", err, hidden{errdefs.ErrFailedPrecondition})
	} else {
		err = child.enter(argv, env)
	}
	child.end()
	return err
}

// A usernsChild is a process that has made a user namespace and waits.
type usernsChild struct {
	pid  int
	hold *os.File // it ends when this is closed
}

func newUserns() (*usernsChild, error) {
	p := sys.NewPlan()
	failed := p.Label()
	p.OnFatal(failed)
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(2), sys.Int(^uint32(0)), sys.Int(0))
	p.Do(unix.SYS_UNSHARE, sys.Int(unix.CLONE_NEWUSER|unix.CLONE_NEWNS)).Note("make it")
	p.Do(unix.SYS_WRITE, sys.Int(1), p.Words(sys.Int(0), sys.Int(0)), sys.Int(recordLength))
	p.Do(unix.SYS_READ, sys.Int(0), p.Cell(0).Addr(), sys.Int(1)).MayFail()
	p.Exit(0)
	p.Mark(failed)
	p.Do(unix.SYS_WRITE, sys.Int(1), sys.FailureRecord(), sys.Int(sys.FailureBytes)).MayFail()
	p.Exit(1)

	hold, in, err := newPipe(false)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	ready, out, err := newPipe(true)
	if err != nil {
		hold.Close()
		return nil, err
	}
	defer ready.Close()
	pid, err := p.Start("den-userns", []*os.File{in, out})
	out.Close()
	if err != nil {
		hold.Close()
		return nil, err
	}
	c := &usernsChild{pid: pid, hold: hold}
	errno, at, err := readRecord(ready)
	if err == nil && errno != 0 {
		err = p.Failure(at, unix.Errno(errno))
	}
	if err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

func (c *usernsChild) end() {
	c.hold.Close()
	for {
		if _, err := unix.Wait4(c.pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// enter joins the child's namespaces and executes den.
func (c *usernsChild) enter(argv, env []string) error {
	spaces, err := openNamespaces(c.pid)
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer spaces.close()
	return spaces.enter(argv, env, c)
}

// userspace are the user and the mount namespace that den runs sandboxes in.
type userspace [2]*os.File

func openNamespaces(pid int) (s userspace, err error) {
	for i, name := range []string{"user", "mnt"} {
		if s[i], err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name)); err != nil {
			s.close()
			return s, err
		}
	}
	return s, nil
}

func (s userspace) close() {
	for _, f := range s {
		if f != nil {
			f.Close()
		}
	}
}

// enter executes a plan that joins the namespaces, lets the child end that made them, if any, and
// executes den.
func (s userspace) enter(argv, env []string, child *usernsChild) error {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer exe.Close()
	path, err := os.Executable()
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	p := sys.NewPlan()
	failed := p.Label()
	p.OnFatal(failed)
	for i, flag := range []int{unix.CLONE_NEWUSER, unix.CLONE_NEWNS} {
		p.Do(unix.SYS_SETNS, sys.Int(s[i].Fd()), sys.Int(flag))
		p.Do(unix.SYS_CLOSE, sys.Int(s[i].Fd()))
	}
	p.Do(unix.SYS_CHDIR, p.Str(cwd)).MayFail()
	keep := append(s[:], exe)
	if child != nil {
		// The child's pipe ends with this process's copy of it.
		p.Do(unix.SYS_CLOSE, sys.Int(child.hold.Fd()))
		p.Do(unix.SYS_WAIT4, sys.Int(child.pid), sys.Int(0), sys.Int(0), sys.Int(0)).MayFail()
		keep = append(keep, child.hold)
	}
	p.Do(unix.SYS_FCNTL, sys.Int(exe.Fd()), sys.Int(unix.F_SETFD), sys.Int(unix.FD_CLOEXEC))
	args, vars := p.Strs(argv), p.Strs(enteredEnviron(env))
	p.Do(unix.SYS_EXECVE, p.Str(path), args, vars).MayFail()
	p.Do(unix.SYS_EXECVEAT, sys.Int(exe.Fd()), p.Str(""), args, vars, sys.Int(unix.AT_EMPTY_PATH))
	p.Mark(failed)
	const msg = "den: could not enter its user namespace\n"
	p.Do(unix.SYS_WRITE, sys.Int(2), p.Str(msg), sys.Int(len(msg))).MayFail()
	p.Exit(125)

	// They have to survive this exec and not the next.
	for _, f := range keep {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("user namespace: %w", err)
		}
		defer unix.CloseOnExec(int(f.Fd()))
	}
	if err := p.Exec("den"); err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	return io.ErrUnexpectedEOF // Exec does not come back
}

// enteredEnviron is env with the mark of who has entered.
func enteredEnviron(env []string) []string {
	return append(slices.DeleteFunc(slices.Clone(env), func(e string) bool { return e == enteredEnv }), enteredEnv)
}

// JoinUserns is EnterUserns for a process that will adopt detached sandboxes: it
// replaces the calling process by the same program inside the user and mount namespace of the first
// that lives of those that were started with Detach one of dirs. It returns nil if none
// lives, and the caller goes on to EnterUserns.
//
// So the sandboxes of one engine are all in one user namespace: a process of the engine
// makes a new one only when none of its sandboxes lives, and joins else. The holders keep it alive.
func JoinUserns(dirs, argv, env []string) error {
	for _, dir := range dirs {
		spaces, err := holderNamespaces(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("user namespace of the sandbox of %s: %w", dir, err)
		}
		defer spaces.close()
		return spaces.enter(argv, env, nil)
	}
	return nil
}

// holderNamespaces opens the namespaces of the sandbox's holder; fs.ErrNotExist if there is none.
func holderNamespaces(dir string) (spaces userspace, err error) {
	d := &detached{}
	if d.dir, err = os.Open(dir); err != nil {
		return spaces, err
	}
	defer d.close()
	rs, err := d.readRecords()
	if err != nil {
		return spaces, err
	}
	if rs.holder == 0 {
		return spaces, fs.ErrNotExist
	}
	spaces, err = openNamespaces(rs.holder)
	// The id was the holder's all the time if the holder reads its pipe afterwards.
	control, cerr := d.pipe(fileControl, unix.O_WRONLY|unix.O_NONBLOCK)
	if cerr != nil {
		spaces.close()
		if errors.Is(cerr, unix.ENXIO) {
			cerr = fs.ErrNotExist
		}
		return spaces, cerr
	}
	control.Close()
	return spaces, err
}
