package sandbox

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

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
		// Most of these are missing on any one kernel, and the rest mostly files.
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), inside(path), unix.O_PATH, at).Err(next)
		p.Do(unix.SYS_OPENAT, at.Value(), p.Str("."), sys.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).To(fd).Err(file)
		p.Close(fd)
		p.FSOpen("tmpfs", fs).Note(note)
		p.FSCreate(fs).Note(note)
		p.FSMount(fs, fd, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC).Note(note)
		p.MoveMount(fd.Value(), at.Value()).Note(note)
		p.Close(fs)
		p.Close(fd)
		p.Close(at)
		p.Goto(next)
		p.Mark(file)
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
		return p.fresh(specs.NetworkNamespace) || p.r.OwnNetwork && p.namespace(specs.NetworkNamespace) != nil
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
		return p.fresh(specs.IPCNamespace)
	case name == "kernel.domainname":
		return p.fresh(specs.UTSNamespace)
	}
	return false
}
