package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// fuseOverlay has the program fuse-overlayfs merge layers, on kernels and file
// systems that do not. It is mounted where den sees it, for as long as an Active is
// used, and dies with den.
type fuseOverlay struct{ program string }

// Name is "fuse-overlayfs".
func (fuseOverlay) Name() string { return FuseOverlay }

// Prepare mounts the stack, with the draft's tree above it, in the draft's work directory.
func (o fuseOverlay) Prepare(ctx context.Context, stack []Tree, d Draft) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("prepare fuse-overlayfs: %w", err)
	}
	a := &Active{upper: d.FS(), lower: lower}
	if len(lower) == 0 {
		a.Root = bind(d.FS(), "rw", hold)
		return a, nil
	}
	err = adoptRoot(d.FS(), lower[0])
	if err == nil {
		err = o.mount(ctx, a, d.Work(), lower, "upperdir="+d.FS())
	}
	if err != nil {
		return nil, fmt.Errorf("prepare fuse-overlayfs: %w", err)
	}
	a.Root = bind(filepath.Join(d.Work(), fuseRoot), "rw", hold)
	return a, nil
}

// View shows a single tree as it is and merges several.
func (o fuseOverlay) View(ctx context.Context, stack []Tree) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("view fuse-overlayfs: %w", err)
	}
	if len(lower) < 2 {
		return &Active{Root: view(lower, hold)}, nil
	}
	dir, err := os.MkdirTemp("", "den-view-")
	if err != nil {
		return nil, fmt.Errorf("view fuse-overlayfs: %w", err)
	}
	a := &Active{}
	if err := o.mount(ctx, a, dir, lower, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("view fuse-overlayfs: %w", err), os.RemoveAll(dir))
	}
	unmount := a.close
	a.close = func() error { return errors.Join(unmount(), tempDraft(dir).Close()) }
	a.Root = bind(filepath.Join(dir, fuseRoot), "ro", hold)
	return a, nil
}

// Changes unmounts, so that all is written, and gives what the program has left in the
// upper directory the form of the kernel's overlays.
func (fuseOverlay) Changes(ctx context.Context, a *Active) error {
	err := a.Close()
	if err == nil && len(a.lower) > 0 {
		err = canonical(ctx, a.upper, a.lower)
	}
	if err != nil {
		return fmt.Errorf("collect changes: %w", err)
	}
	return nil
}

// The members of the directory in which a mount is made.
const (
	fuseRoot = "root"
	fuseWork = "work"
)

// fuseWait is how long the program may take to mount, and to end.
const fuseWait = 30 * time.Second

// mount starts the program and waits for its mount; a.close undoes both. upper is an
// option, or empty for a read-only merge.
func (o fuseOverlay) mount(ctx context.Context, a *Active, dir string, lower []string, upper string) error {
	for _, path := range append([]string{upper, dir}, lower...) {
		if strings.ContainsAny(path, `:,\`) {
			return fmt.Errorf("%s: fuse-overlayfs cannot have a path with a colon, comma or backslash; use another DEN_STORE: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
	root := filepath.Join(dir, fuseRoot)
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	if upper != "" {
		work := filepath.Join(dir, fuseWork)
		if err := os.Mkdir(work, 0o755); err != nil {
			return err
		}
		options += "," + upper + ",workdir=" + work + ",volatile"
	}
	p, err := startProgram(exec.Command(o.program, "-f", "-o", options, root))
	if err != nil {
		return err
	}
	if err := p.mounted(ctx, dir, root); err != nil {
		return errors.Join(err, p.unmount(root))
	}
	a.close = func() error { return p.unmount(root) }
	return nil
}

// A program serves a mount.
type program struct {
	ended chan struct{}
	err   error // of its end, after ended
	said  bytes.Buffer
	kill  func() error
}

// startProgram starts cmd so that it dies with den.
func startProgram(cmd *exec.Cmd) (*program, error) {
	p := &program{ended: make(chan struct{})}
	started := make(chan error)
	cmd.Stdout, cmd.Stderr = &p.said, &p.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true} // an interrupt is den's to handle
	go func() {
		defer close(p.ended)
		// The signal comes when the thread ends that has started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.kill = cmd.Process.Kill
	return p, nil
}

// mounted waits until root is another file system than dir.
func (p *program) mounted(ctx context.Context, dir, root string) error {
	var below, there unix.Stat_t
	if err := unix.Stat(dir, &below); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(fuseWait)
	defer late.Stop()
	for {
		if err := unix.Stat(root, &there); err == nil && there.Dev != below.Dev {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.ended:
			return fmt.Errorf("it ended: %w: %s", errors.Join(p.err, errdefs.ErrFailedPrecondition), bytes.TrimSpace(p.said.Bytes()))
		case <-late.C:
			return fmt.Errorf("it has not mounted within %s: %w", fuseWait, errdefs.ErrUnavailable)
		case <-tick.C:
		}
	}
}

// unmount ends the mount and waits for the program, which has written all by then.
func (p *program) unmount(root string) error {
	var errs []error
	if f, err := os.Open(root); err == nil {
		// A copy of the mount in another mount namespace keeps the file system, and
		// what it has not written, for a moment longer.
		errs = append(errs, sys.Syncfs(f), f.Close())
	}
	if err := unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, &os.PathError{Op: "unmount", Path: root, Err: err})
	}
	late := time.NewTimer(fuseWait)
	defer late.Stop()
	select {
	case <-p.ended:
	case <-late.C:
		errs = append(errs, p.kill())
		<-p.ended
	}
	return errors.Join(errs...)
}

// ReleaseDead unmounts what programs of a den that was killed have left below dir:
// nobody serves it any more, and nothing there could be removed.
func ReleaseDead(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("release mounts: %w", err)
	}
	for _, path := range fuseMounts(string(data), dir) {
		var st unix.Statfs_t
		if !errors.Is(unix.Statfs(path, &st), unix.ENOTCONN) {
			continue
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("release mounts: %w", &os.PathError{Op: "unmount", Path: path, Err: err})
		}
	}
	return nil
}

// fuseMounts lists the mount points below dir that mountinfo (proc(5)) says are
// fuse-overlayfs'.
func fuseMounts(mountinfo, dir string) (paths []string) {
	for line := range strings.Lines(mountinfo) {
		own, rest, _ := strings.Cut(line, " - ")
		fields := strings.Fields(own)
		if len(fields) < 5 || !strings.HasPrefix(rest, "fuse.fuse-overlayfs ") {
			continue
		}
		path := unescape.Replace(fields[4])
		if strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
			paths = append(paths, path)
		}
	}
	return paths
}

// unescape undoes what mountinfo does to spaces and the like.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
