package sandbox

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// overlayMount makes a detached overlay. Source may name a path in it, which
// is then all that is shown.
func (p *program) overlayMount(m *mount, note string) error {
	if len(m.Lower) == 0 {
		return fmt.Errorf("%s: an overlay without lower directories", note)
	}
	if p.nodev() {
		m.o.Set |= unix.MOUNT_ATTR_NODEV
	}
	if len(m.Lower) == 1 && m.Upper == "" {
		// The kernel wants two directories; one alone is what it shows.
		p.CloneTree(sys.Int(unix.AT_FDCWD), m.Lower[0], m.fd, false).Note(note)
		p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.Set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, false).Note(note)
	} else if err := p.overlayFS(m, note); err != nil {
		return err
	}
	if sub := m.Source; sub != "" && sub != "overlay" && inside(sub) != "/" {
		p.subtree(m, inside(sub), note)
	}
	return nil
}

// overlayFS mounts the overlay with one directory after the other (Linux 6.5), so
// that their number is not bounded by a page of options, or by mount(2).
func (p *program) overlayFS(m *mount, note string) error {
	dirs := append([]string{}, m.Lower...)
	if m.Upper != "" {
		dirs = append(dirs, m.Upper, m.Work)
	}
	base, err := commonDir(dirs)
	if err != nil {
		return fmt.Errorf("%s: %w", note, err)
	}
	long := func(d string) bool { return len(relative(base, d)) > 255 } // of fsconfig(2)
	if !p.o.lowerdirPlus || slices.ContainsFunc(dirs, long) {
		p.overlayByMount(m, dirs, note)
		return nil
	}
	p.Do(unix.SYS_CHDIR, p.Str(base)).Note(note)
	fs := p.Cell(0)
	p.FSOpen("overlay", fs).Note(note)
	// An upper directory is a difference only without redirects and metadata
	// copies; userxattr switches both off, and refuses them as parameters.
	p.FSFlag(fs, "userxattr").Note(note)
	p.FSString(fs, "index", "off").MayFail() // not in every kernel
	for _, d := range m.Lower {
		p.FSString(fs, "lowerdir+", relative(base, d)).Note(note + ": " + d)
	}
	if m.Upper != "" {
		p.FSFlag(fs, "volatile").MayFail()
		p.FSString(fs, "upperdir", relative(base, m.Upper)).Note(note + ": " + m.Upper)
		p.FSString(fs, "workdir", relative(base, m.Work)).Note(note + ": " + m.Work)
	}
	p.FSCreate(fs).Note(note)
	p.FSMount(fs, m.fd, m.o.Set).Note(note)
	p.Close(fs)
	return nil
}

// overlayByMount is for kernels before 6.5: all options are one page. So that
// 500 directories fit, each is opened and named by its descriptor's number, from
// within /proc/self/fd.
func (p *program) overlayByMount(m *mount, dirs []string, note string) {
	const first = 100 // above every descriptor of the plan
	fd := p.Cell(0)
	names := make([]string, len(dirs))
	for i, d := range dirs {
		p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str(d), sys.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).To(fd).Note(note + ": " + d)
		p.Do(unix.SYS_DUP3, fd.Value(), sys.Int(first+i), sys.Int(unix.O_CLOEXEC)).Note(note)
		p.Close(fd)
		names[i] = fmt.Sprint(first + i)
	}
	n := len(m.Lower)
	options := "userxattr,lowerdir=" + strings.Join(names[:n], ":")
	if m.Upper != "" {
		options += ",upperdir=" + names[n] + ",workdir=" + names[n+1]
	}
	done, plain := p.Label(), p.Label()
	p.Do(unix.SYS_CHDIR, p.Str("/proc/self/fd")).Note(note)
	// Mounted over its own topmost directory, from where it is cloned: nobody
	// but the payload's process is in this mount namespace.
	more := ",index=off"
	if m.Upper != "" {
		more += ",volatile"
	}
	call := func(options string) *sys.Op {
		return p.Do(unix.SYS_MOUNT, p.Str("overlay"), p.Str(m.Lower[0]), p.Str("overlay"), sys.Int(0), p.Str(options)).Note(note)
	}
	call(options + more).Zero(done).Err(plain)
	p.Mark(plain)
	call(options)
	p.Mark(done)
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(first), sys.Int(first+len(dirs)-1), sys.Int(0)).MayFail()
	p.CloneTree(sys.Int(unix.AT_FDCWD), m.Lower[0], m.fd, false).Note(note)
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.Set, Propagation: unix.MS_PRIVATE}, false).Note(note)
}

// subtree replaces the detached mount by a clone of one path in it. To be
// cloned it has to be attached: over its own topmost directory, in the old root.
func (p *program) subtree(m *mount, sub, note string) {
	fd := p.Cell(0)
	if len(m.Lower) > 1 || m.Upper != "" {
		p.Do(unix.SYS_MOVE_MOUNT, m.fd.Value(), p.Str(""), sys.Int(unix.AT_FDCWD), p.Str(m.Lower[0]), sys.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).Note(note)
	} else {
		p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str(m.Lower[0]), sys.Int(unix.O_PATH|unix.O_CLOEXEC)).To(m.fd).Note(note)
	}
	p.OpenInRoot(m.fd.Value(), sub, unix.O_PATH, fd).Note(note + ": " + sub)
	p.CloneTree(fd.Value(), "", m.fd, false).Note(note + ": " + sub)
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.Set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, false).Note(note)
	p.Close(fd)
}

// commonDir is the longest directory that all paths share; they are absolute.
func commonDir(paths []string) (string, error) {
	common := ""
	for i, p := range paths {
		if !filepath.IsAbs(p) {
			return "", fmt.Errorf("directory %q is not absolute", p)
		}
		dir := path.Dir(filepath.Clean(p))
		if i == 0 {
			common = dir
		}
		for common != "/" && dir != common && !strings.HasPrefix(dir, common+"/") {
			common = path.Dir(common)
		}
	}
	return common, nil
}

func relative(base, p string) string {
	p = filepath.Clean(p)
	if base == "/" {
		return p[1:]
	}
	return strings.TrimPrefix(p, base+"/")
}
