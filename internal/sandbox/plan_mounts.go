package sandbox

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// A mount is one mount of the sandbox with the cell of its descriptor.
type mount struct {
	oci.Mount
	o  MountOptions
	fd *sys.Cell
	// optional mounts are left out where the kernel refuses them.
	optional bool
	// cloned says that proc is the outer one.
	cloned bool
	// dir says that the source is a directory, and so must the target be.
	dir bool
}

// isDev reports whether m is the new /dev, which den fills.
func (m mount) isDev() bool { return m.Target == "/dev" && m.Type == "tmpfs" }

// fileSystem makes the mounts, switches the root and attaches them.
//
// Order matters for safety. All sources are mounts of their own, attached
// nowhere, before the root is switched, so no path of the outer container is
// resolved after it. Every target is opened after the switch, inside the new
// root, without magic links, and mounted on by descriptor: an image whose /proc
// or /etc/resolv.conf is a symbolic link cannot lead a mount elsewhere
// (CVE-2019-16884, CVE-2021-30465, CVE-2025-31133). By then the old root is
// detached: while it lies over the new one, ".." of the root leads into it.
func (p *program) fileSystem() error {
	if err := p.listMounts(); err != nil {
		return err
	}
	p.Do(unix.SYS_MOUNT, sys.Int(0), p.Str("/"), sys.Int(0), sys.Int(unix.MS_REC|unix.MS_SLAVE), sys.Int(0)).Note("make mounts private")
	root := p.Cell(0)
	if err := p.root(root); err != nil {
		return err
	}
	for i := range p.mounts {
		if err := p.source(&p.mounts[i]); err != nil {
			return err
		}
	}
	devices, err := p.deviceSources()
	if err != nil {
		return err
	}
	nulls := p.nulls()
	p.switchRoot(root)
	for i := range p.mounts {
		p.attach(i, devices)
	}
	if p.spec.Process.Terminal {
		p.terminal()
	}
	if err := p.sysctls(); err != nil {
		return err
	}
	p.protect(nulls)
	if p.spec.Root != nil && p.spec.Root.Readonly {
		p.SetMountAttr(root, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false).Note("make the root read-only")
	}
	return nil
}

// listMounts settles how each mount is made.
func (p *program) listMounts() error {
	all, err := Mounts(p.r)
	if err != nil {
		return err
	}
	for _, m := range all {
		o, err := ParseMountOptions(m.Options)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		mt := mount{Mount: m, o: o, fd: p.Cell(0), dir: true}
		skip, err := p.classify(&mt)
		if err != nil {
			return err
		}
		if skip {
			continue
		}
		p.mounts = append(p.mounts, mt)
		p.targets = append(p.targets, target{mt.Target, mt.dir})
	}
	return nil
}

// classify settles how a mount is made; skip leaves it out.
func (p *program) classify(m *mount) (skip bool, err error) {
	switch {
	case m.Type == "proc" && p.o.sharePids:
		// A proc of a pid namespace that the payload is not in would lie
		// about every process, and below masked paths the kernel allows no other.
		m.Type, m.Source, m.o.rbind, m.cloned = "bind", "/proc", true, true
	case m.Type == "cgroup":
		if p.o.cgroupVersion != 2 || !p.fresh(specs.CgroupNamespace) {
			return true, nil
		}
		m.Type, m.optional = "cgroup2", true
	case m.Type == "mqueue":
		m.optional = true
	case m.Type == "" && m.o.bind, m.Type == "none" && m.o.bind, m.Type == "rbind":
		m.o.rbind = m.o.rbind || m.Type == "rbind"
		m.Type = "bind"
	}
	if m.Type != "bind" {
		return false, nil
	}
	st, err := os.Stat(m.Source)
	if err != nil {
		return false, fmt.Errorf("mount %s: source: %w", m.Target, err)
	}
	m.dir = st.IsDir()
	return false, nil
}

// nodev reports whether device nodes are just files in the sandbox: Docker
// allows mknod and forbids to open the result by the device cgroup, which den may not
// have, so that den's nodes are mounts of the outer ones and no other file system has devices.
func (p *program) nodev() bool {
	if r := p.spec.Linux.Resources; r != nil {
		for _, d := range r.Devices {
			if d.Allow && (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil {
				return false
			}
		}
	}
	return true
}

// source makes the detached mount of m.
func (p *program) source(m *mount) error {
	note := "mount " + m.Target
	switch m.Type {
	case "bind":
		p.bind(m, note)
	case "overlay":
		return p.overlayMount(m, note)
	case "sysfs":
		p.sysfs(m, note)
	default:
		p.newFS(m, note)
	}
	return nil
}

// bind clones what the source shows. Restrictions of the source stay: nothing is ever
// cleared.
func (p *program) bind(m *mount, note string) {
	p.CloneTree(sys.Int(unix.AT_FDCWD), m.Source, m.fd, m.o.rbind || !m.o.bind).Note(note)
	attr := unix.MountAttr{Attr_set: m.o.Set, Propagation: m.o.propagation &^ unix.MS_REC}
	if attr.Attr_set&unix.MOUNT_ATTR__ATIME != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	if attr.Propagation == 0 {
		attr.Propagation = unix.MS_PRIVATE
	}
	if p.nodev() && !m.cloned {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	p.SetMountAttr(m.fd, attr, true).Note(note)
}

// newFS makes a new file system of the type.
func (p *program) newFS(m *mount, note string) {
	end := p.Label()
	fs := p.Cell(0)
	each := func(o *sys.Op) {
		o.Note(note)
		if m.optional {
			o.Err(end)
		}
	}
	each(p.FSOpen(m.Type, fs))
	if m.Source != "" && m.Source != m.Type {
		p.FSString(fs, "source", m.Source).MayFail()
	}
	for _, opt := range m.o.FS {
		key, value, hasValue := strings.Cut(opt, "=")
		var o *sys.Op
		if hasValue {
			o = p.FSString(fs, key, value)
		} else {
			o = p.FSFlag(fs, key)
		}
		o.Note(note + ": option " + opt)
		// Old kernels' devpts knows no newinstance, since it is always one, and
		// a group that is not mapped cannot own terminals.
		if m.optional || m.Type == "devpts" {
			o.MayFail()
		}
	}
	each(p.FSCreate(fs))
	set := m.o.Set
	if m.Type == "tmpfs" && p.nodev() {
		set |= unix.MOUNT_ATTR_NODEV
	}
	each(p.FSMount(fs, m.fd, set))
	p.Mark(end)
	p.Close(fs)
	if m.Type == "tmpfs" {
		p.targetsBelow(m)
	}
}

// targetsBelow makes the targets of other mounts in a new, empty file system,
// where nothing can be in the way.
func (p *program) targetsBelow(m *mount) {
	made := map[string]bool{}
	for _, t := range p.targets {
		rel, ok := strings.CutPrefix(t.path, m.Target+"/")
		if !ok {
			continue
		}
		for i, c := range rel {
			if c == '/' && !made[rel[:i]] {
				p.Do(unix.SYS_MKDIRAT, m.fd.Value(), p.Str(rel[:i]), sys.Int(0o755)).MayFail()
				made[rel[:i]] = true
			}
		}
		if t.dir {
			p.Do(unix.SYS_MKDIRAT, m.fd.Value(), p.Str(rel), sys.Int(0o755)).MayFail()
		} else {
			p.Do(unix.SYS_MKNODAT, m.fd.Value(), p.Str(rel), sys.Int(unix.S_IFREG|0o644), sys.Int(0)).MayFail()
		}
	}
}

// sysfs needs a network namespace of the same user namespace; where it is
// not, the outer one is shown, read-only.
func (p *program) sysfs(m *mount, note string) {
	clone, end := p.Label(), p.Label()
	fs := p.Cell(0)
	p.FSOpen("sysfs", fs).Err(clone)
	p.FSCreate(fs).Err(clone)
	p.FSMount(fs, m.fd, m.o.Set).Err(clone)
	p.Close(fs)
	p.Goto(end)
	p.Mark(clone)
	p.CloneTree(sys.Int(unix.AT_FDCWD), "/sys", m.fd, true).Note(note)
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.Set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, true).Note(note)
	p.Mark(end)
}

// attach puts mount i on its target, which den makes if it is missing.
func (p *program) attach(i int, devices []deviceSource) {
	m := &p.mounts[i]
	note := "mount " + m.Target
	have := p.Label()
	to := p.Cell(0)
	p.OpenInRoot(sys.Int(unix.AT_FDCWD), m.Target, unix.O_PATH, to).MayFail().Pos(have)
	p.ask(i)
	open := p.OpenInRoot(sys.Int(unix.AT_FDCWD), m.Target, unix.O_PATH, to).Note(note)
	p.Mark(have)
	move := p.MoveMount(m.fd.Value(), to.Value()).Note(note)
	if m.optional {
		open.MayFail()
		move.MayFail()
	}
	p.Close(to)
	if m.isDev() {
		p.devices(m, devices)
	}
	p.Close(m.fd)
}

// switchRoot makes the mount in root the root directory and leaves the old one. den,
// which answers questions about files in there, gets the directory from here:
// through /proc it may not look at a process that is not dumpable, unless it has
// CAP_SYS_PTRACE.
func (p *program) switchRoot(root *sys.Cell) {
	p.Do(unix.SYS_MOVE_MOUNT, root.Value(), p.Str(""), sys.Int(unix.AT_FDCWD), p.Str("/"), sys.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).Note("attach the root")
	p.Do(unix.SYS_FCHDIR, root.Value()).Note("enter the root")
	p.Do(unix.SYS_PIVOT_ROOT, p.Str("."), p.Str(".")).Note("switch the root")
	// The old root is now on top of the new one, where "." leads (pivot_root(2)).
	p.Do(unix.SYS_UMOUNT2, p.Str("."), sys.Int(unix.MNT_DETACH)).Note("leave the old root")
	p.Do(unix.SYS_CHDIR, p.Str("/"))
	p.send(root, showRoot)
}

// root makes the detached mount of the root file system.
func (p *program) root(fd *sys.Cell) error {
	m := mount{Mount: p.r.Root, fd: fd}
	o, err := ParseMountOptions(m.Options)
	if err != nil {
		return fmt.Errorf("mount /: %w", err)
	}
	m.o = o
	m.Target = "/"
	switch m.Type {
	case "overlay":
		m.Source = ""
		return p.overlayMount(&m, "mount /")
	case "bind", "rbind", "":
		m.o.bind, m.o.rbind = true, m.o.rbind || m.Type == "rbind"
		p.bind(&m, "mount /")
		return nil
	default:
		return fmt.Errorf("mount /: type %.40q cannot be a root", m.Type)
	}
}
