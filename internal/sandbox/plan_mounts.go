package sandbox

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// A mount is one mount of the sandbox with the cell of its descriptor.
type mount struct {
	oci.Mount
	o  mountOptions
	fd *sys.Cell
	// optional mounts are left out where the kernel refuses them.
	optional bool
	// clonedProc says that proc is the outer one.
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

// listMounts merges the specification's mounts and the request's: a later one
// takes the place of a default with the same target, and /dev of all below it.
func (p *program) listMounts() error {
	own := map[string]bool{}
	for _, m := range p.r.Mounts {
		own[inside(m.Target)] = true
	}
	add := func(m oci.Mount) error {
		m.Target = inside(m.Target)
		if m.Target == "/" {
			return fmt.Errorf("mount %s: the target is the root", m.Source)
		}
		o, err := parseMountOptions(m.Options)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		mt := mount{Mount: m, o: o, fd: p.Cell(0), dir: true}
		if skip, err := p.classify(&mt); skip || err != nil {
			return err
		}
		p.mounts = append(p.mounts, mt)
		p.targets = append(p.targets, target{mt.Target, mt.dir})
		return nil
	}
	for _, m := range p.spec.Mounts {
		t := inside(m.Destination)
		if own[t] || own["/dev"] && strings.HasPrefix(t, "/dev/") {
			continue
		}
		if err := add(oci.Mount{Type: m.Type, Source: m.Source, Target: t, Options: m.Options}); err != nil {
			return err
		}
	}
	for _, m := range p.r.Mounts {
		if err := add(m); err != nil {
			return err
		}
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
	attr := unix.MountAttr{Attr_set: m.o.set, Propagation: m.o.propagation &^ unix.MS_REC}
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
	for _, opt := range m.o.fs {
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
	set := m.o.set
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
	p.FSMount(fs, m.fd, m.o.set).Err(clone)
	p.Close(fs)
	p.Goto(end)
	p.Mark(clone)
	p.CloneTree(sys.Int(unix.AT_FDCWD), "/sys", m.fd, true).Note(note)
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, true).Note(note)
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

// nulls returns clones of /dev/null to mask files with, one for each masked
// path. Where the sandbox's own /dev has one, that is cloned as it is needed.
func (p *program) nulls() []*sys.Cell {
	cells := make([]*sys.Cell, len(p.spec.Linux.MaskedPaths))
	if slices.ContainsFunc(p.mounts, mount.isDev) {
		return cells
	}
	for i := range cells {
		cells[i] = p.Cell(0)
		p.CloneTree(sys.Int(unix.AT_FDCWD), "/dev/null", cells[i], false).Note("clone /dev/null")
	}
	return cells
}

// protect hides masked paths and makes others read-only.
func (p *program) protect(nulls []*sys.Cell) {
	at, fd := p.Cell(0), p.Cell(0)
	for _, path := range p.spec.Linux.ReadonlyPaths {
		next := p.Label()
		note := "make read-only " + path
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(path), unix.O_PATH, at).Err(next)
		p.CloneTree(at.Value(), "", fd, true).Note(note)
		p.SetMountAttr(fd, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, true).Note(note)
		p.MoveMount(fd.Value(), at.Value()).Note(note)
		p.Close(fd)
		p.Close(at)
		p.Mark(next)
	}
	for i, path := range p.spec.Linux.MaskedPaths {
		next, file := p.Label(), p.Label()
		fs := p.Cell(0)
		note := "mask " + path
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(path), unix.O_PATH|unix.O_DIRECTORY, at).Err(file)
		p.FSOpen("tmpfs", fs).Note(note)
		p.FSCreate(fs).Note(note)
		p.FSMount(fs, fd, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC).Note(note)
		p.MoveMount(fd.Value(), at.Value()).Note(note)
		p.Close(fs)
		p.Close(fd)
		p.Close(at)
		p.Goto(next)
		p.Mark(file)
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(path), unix.O_PATH, at).Err(next)
		if nulls[i] != nil {
			p.MoveMount(nulls[i].Value(), at.Value()).Note(note)
		} else {
			p.CloneTree(p.null.Value(), "", fd, false).Note(note)
			p.MoveMount(fd.Value(), at.Value()).Note(note)
			p.Close(fd)
		}
		p.Close(at)
		p.Mark(next)
	}
}

// sysctls sets parameters of the sandbox's own namespaces, and no others.
func (p *program) sysctls() error {
	fd := p.Cell(0)
	set := func(name, value string) (open, write *sys.Op) {
		note := "sysctl " + name
		open = p.OpenInRoot(sys.Int(unix.AT_FDCWD), "/proc/sys/"+strings.ReplaceAll(name, ".", "/"), unix.O_WRONLY, fd).Note(note)
		write = p.Do(unix.SYS_WRITE, fd.Value(), p.Str(value), sys.Int(len(value))).Note(note)
		p.Close(fd)
		return open, write
	}
	if p.r.Network == NetworkNone && p.fresh(specs.NetworkNamespace) { // as dockerd sets for every own network
		for _, kv := range [][2]string{{"net.ipv4.ip_unprivileged_port_start", "0"}, {"net.ipv4.ping_group_range", "0 2147483647"}} {
			open, write := set(kv[0], kv[1])
			open.MayFail()
			write.MayFail()
		}
	}
	for name, value := range p.spec.Linux.Sysctl {
		if !p.ownSysctl(name) || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("sysctl %.80q: not one of the sandbox's own namespaces", name)
		}
		set(name, value)
	}
	return nil
}

func (p *program) ownSysctl(name string) bool {
	switch {
	case strings.HasPrefix(name, "net."):
		return p.fresh(specs.NetworkNamespace)
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
		return p.fresh(specs.IPCNamespace)
	case name == "kernel.domainname":
		return p.fresh(specs.UTSNamespace)
	}
	return false
}

// switchRoot makes the mount in root the root directory and leaves the old one.
func (p *program) switchRoot(root *sys.Cell) {
	p.Do(unix.SYS_MOVE_MOUNT, root.Value(), p.Str(""), sys.Int(unix.AT_FDCWD), p.Str("/"), sys.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).Note("attach the root")
	p.Do(unix.SYS_FCHDIR, root.Value()).Note("enter the root")
	p.Do(unix.SYS_PIVOT_ROOT, p.Str("."), p.Str(".")).Note("switch the root")
	// The old root is now on top of the new one, where "." leads (pivot_root(2)).
	p.Do(unix.SYS_UMOUNT2, p.Str("."), sys.Int(unix.MNT_DETACH)).Note("leave the old root")
	p.Do(unix.SYS_CHDIR, p.Str("/"))
}

// root makes the detached mount of the root file system.
func (p *program) root(fd *sys.Cell) error {
	m := mount{Mount: p.r.Root, fd: fd}
	o, err := parseMountOptions(m.Options)
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

// overlayMount makes a detached overlay. Source may name a path in it, which
// is then all that is shown.
func (p *program) overlayMount(m *mount, note string) error {
	if len(m.Lower) == 0 {
		return fmt.Errorf("%s: an overlay without lower directories", note)
	}
	if p.nodev() {
		m.o.set |= unix.MOUNT_ATTR_NODEV
	}
	if len(m.Lower) == 1 && m.Upper == "" {
		// The kernel wants two directories; one alone is what it shows.
		p.CloneTree(sys.Int(unix.AT_FDCWD), m.Lower[0], m.fd, false).Note(note)
		p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, false).Note(note)
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
	if !p.o.lowerdirPlus {
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
	p.FSMount(fs, m.fd, m.o.set).Note(note)
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
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.set, Propagation: unix.MS_PRIVATE}, false).Note(note)
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
	p.SetMountAttr(m.fd, unix.MountAttr{Attr_set: m.o.set | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, false).Note(note)
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
