package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// placed is what was put into a root in the place of mounts.
type placed struct {
	ctx   context.Context
	root  int    // the root directory
	path  string // and its path
	aside string // a directory beside it, for what was there before
	stubs *stubs
	undos []func() error // in order
}

// place puts copies where r mounts something, and takes the mounts out of r.
func place(ctx context.Context, r *Request, s *stubs, devices bool) (_ *placed, err error) {
	p := &placed{ctx: ctx, stubs: s}
	if p.root, err = unix.Open(r.Root.Source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: r.Root.Source, Err: err}
	}
	p.undos = append(p.undos, func() error { return unix.Close(p.root) })
	defer func() {
		if err != nil {
			err = errors.Join(err, p.undo())
			s.remove()
		}
	}()
	if p.path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", p.root)); err != nil {
		return nil, err
	}
	if p.aside, err = os.MkdirTemp(filepath.Dir(p.path), ".den-chroot-"); err != nil {
		return nil, err
	}
	p.undos = append(p.undos, func() error { return os.Remove(p.aside) })
	// The way of the namespaces' rungs to merge both lists and to understand them.
	list := &program{Plan: sys.NewPlan(), r: r, spec: r.Spec, o: programOptions{chroot: true}}
	if err := list.listMounts(); err != nil {
		return nil, err
	}
	for i := range list.mounts {
		if err := p.mount(&list.mounts[i], devices); err != nil {
			return nil, fmt.Errorf("mount %s: %w", list.mounts[i].Target, err)
		}
	}
	r.Mounts, r.Spec.Mounts = nil, nil
	return p, nil
}

// undo takes everything out again, in reverse. It goes on after errors.
func (p *placed) undo() error {
	var errs []error
	for i := len(p.undos) - 1; i >= 0; i-- {
		errs = append(errs, p.undos[i]())
	}
	p.undos = nil
	return errors.Join(errs...)
}

// mount does for one mount what can be done without one.
func (p *placed) mount(m *mount, devices bool) error {
	switch {
	case m.Type == "proc", m.Type == "sysfs", m.Type == "cgroup", m.Type == "cgroup2", m.Type == "mqueue", m.Type == "devpts":
		return nil // the kernel's own views cannot be copied
	case m.isDev():
		return p.put(m, func(path string) error { return makeDevices(path, devices) })
	case m.Type == "tmpfs":
		return p.put(m, func(path string) error { return makeDir(path, m.o.FS) })
	case m.Type != "bind":
		return fmt.Errorf("type %s: %w on the rung chroot", m.Type, errdefs.ErrNotImplemented)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return &os.PathError{Op: "stat", Path: m.Source, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return p.put(m, func(path string) error { return p.relay(m.Source, path, &st) })
	}
	if k := st.Mode & unix.S_IFMT; k != unix.S_IFDIR && k != unix.S_IFREG {
		return fmt.Errorf("%s is neither a file nor a directory: %w on the rung chroot", m.Source, errdefs.ErrNotImplemented)
	}
	var c *copied
	err := p.put(m, func(path string) (err error) {
		c, err = copyIn(p.ctx, m.Source, path)
		return err
	})
	if err == nil && m.o.Set&unix.MOUNT_ATTR_RDONLY == 0 {
		p.undos = append(p.undos, c.back)
	}
	return err
}

// put has make make something at m's target, and what is there stand aside.
func (p *placed) put(m *mount, make func(path string) error) error {
	if err := p.stubs.make(p.root, m.Target, m.dir, false); err != nil {
		return err
	}
	path, err := p.resolve(m.Target)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; isDir != m.dir {
		return fmt.Errorf("a directory on a file, or a file on a directory: %w", unix.ENOTDIR)
	}
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	restore := holdTimes(parent)
	old := filepath.Join(p.aside, strconv.Itoa(len(p.undos)))
	err = unix.Rename(path, old)
	if err != nil {
		return errors.Join(&os.LinkError{Op: "rename", Old: path, New: old, Err: err}, unix.Close(parent))
	}
	p.undos = append(p.undos, func() error {
		err := sys.RemoveTree(path)
		if err == nil {
			err = unix.Rename(old, path)
		}
		restore()
		return errors.Join(err, unix.Close(parent))
	})
	err = make(path)
	restore()
	return err
}

// resolve is where target is in the root, as a path without links; nothing runs in there yet.
func (p *placed) resolve(target string) (string, error) {
	fd, err := sys.OpenInRoot(p.root, strings.TrimPrefix(target, "/"), unix.O_PATH)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && !strings.HasPrefix(path, p.path+"/") {
		err = fmt.Errorf("the target is the root, or outside of it: %w", errdefs.ErrInvalidArgument)
	}
	return path, err
}

// makeDir makes what stands for a tmpfs.
func makeDir(path string, options []string) error {
	mode := uint32(0o1777)
	for _, o := range options {
		if v, ok := strings.CutPrefix(o, "mode="); ok {
			n, err := strconv.ParseUint(v, 8, 12)
			if err != nil {
				return fmt.Errorf("option %s: %w", o, err)
			}
			mode = uint32(n)
		}
	}
	if err := unix.Mkdir(path, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return chmod(path, mode)
}

func chmod(path string, mode uint32) error {
	if err := unix.Chmod(path, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// makeDevices makes a /dev. Without device nodes there is a null that keeps what
// is written to it.
func makeDevices(path string, devices bool) error {
	if err := makeDir(path, []string{"mode=755"}); err != nil {
		return err
	}
	if !devices {
		null := filepath.Join(path, "null")
		return errors.Join(os.WriteFile(null, nil, 0o666), chmod(null, 0o666))
	}
	for i, name := range defaultDevices {
		node := filepath.Join(path, name)
		if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(deviceNumbers[i])); err != nil {
			return &os.PathError{Op: "mknod", Path: node, Err: err}
		}
		if err := chmod(node, 0o666); err != nil {
			return err
		}
	}
	for _, l := range deviceLinks {
		if strings.HasPrefix(l[0], "/proc/") { // there is none; they dangle as on a machine that boots
			if err := os.Symlink(l[0], filepath.Join(path, l[1])); err != nil {
				return err
			}
		}
	}
	return nil
}

// deviceNumbers are those of defaultDevices (Documentation/admin-guide/devices.txt).
var deviceNumbers = []uint64{unix.Mkdev(1, 3), unix.Mkdev(1, 5), unix.Mkdev(1, 7), unix.Mkdev(1, 8), unix.Mkdev(1, 9), unix.Mkdev(5, 0)}
