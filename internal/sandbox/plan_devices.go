package sandbox

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A deviceSource is a device node of the outer container, cloned.
type deviceSource struct {
	name string // below /dev
	fd   *sys.Cell
}

// defaultDevices are there in every container (OCI runtime-spec, config-linux.md).
var defaultDevices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// deviceLinks are, too.
var deviceLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
}

// deviceSources clones the outer nodes of the sandbox's devices. Nodes are never made: in
// a user namespace that is not possible, and elsewhere /dev would have to allow
// the payload's own nodes as well.
func (p *program) deviceSources() ([]deviceSource, error) {
	var out []deviceSource
	clone := func(path, name string) {
		fd := p.Cell(0)
		p.CloneTree(sys.Int(unix.AT_FDCWD), path, fd, false).Note("device " + path)
		p.SetMountAttr(fd, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}, false).Note("device " + path)
		out = append(out, deviceSource{name, fd})
	}
	seen := map[string]bool{}
	for _, name := range defaultDevices {
		clone("/dev/"+name, name)
		seen[name] = true
	}
	for _, d := range p.spec.Linux.Devices {
		name, ok := strings.CutPrefix(inside(d.Path), "/dev/")
		if !ok || name == "" {
			return nil, fmt.Errorf("device %s: only below /dev", d.Path)
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		outer, err := p.outerNode(d.Path, d.Type, uint32(d.Major), uint32(d.Minor))
		if err != nil {
			return nil, err
		}
		clone(outer, name)
	}
	return out, nil
}

// outerNode finds the node of a device in the outer container; it need not have the
// same name there.
func (p *program) outerNode(path, kind string, major, minor uint32) (string, error) {
	for _, c := range []string{path, fmt.Sprintf("/dev/char/%d:%d", major, minor), fmt.Sprintf("/dev/block/%d:%d", major, minor)} {
		var st unix.Stat_t
		if unix.Stat(c, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		isBlock := st.Mode&unix.S_IFMT == unix.S_IFBLK
		if uint64(st.Rdev) == unix.Mkdev(major, minor) && isBlock == (kind == "b") {
			return c, nil
		}
	}
	return "", fmt.Errorf("device %s (%s %d:%d): %w in the outer container", path, kind, major, minor, os.ErrNotExist)
}

// devices fills a new /dev.
func (p *program) devices(dev *mount, sources []deviceSource) {
	to := p.Cell(0)
	made := map[string]bool{}
	for _, d := range sources {
		for i, c := range d.name {
			if c == '/' && !made[d.name[:i]] {
				p.Do(unix.SYS_MKDIRAT, dev.fd.Value(), p.Str(d.name[:i]), sys.Int(0o755)).MayFail()
				made[d.name[:i]] = true
			}
		}
		note := "device /dev/" + d.name
		p.Do(unix.SYS_MKNODAT, dev.fd.Value(), p.Str(d.name), sys.Int(unix.S_IFREG|0o666), sys.Int(0)).MayFail()
		p.OpenInRoot(dev.fd.Value(), d.name, unix.O_PATH, to).Note(note)
		p.MoveMount(d.fd.Value(), to.Value()).Note(note)
		p.Close(to)
		if d.name == "null" {
			p.null = d.fd // masks files later
			continue
		}
		p.Close(d.fd)
	}
	for _, l := range deviceLinks {
		p.Do(unix.SYS_SYMLINKAT, p.Str(l[0]), dev.fd.Value(), p.Str(l[1])).MayFail()
	}
	if p.spec.Process.Terminal {
		p.Do(unix.SYS_MKNODAT, dev.fd.Value(), p.Str("console"), sys.Int(unix.S_IFREG|0o620), sys.Int(0)).MayFail()
	}
}

// terminal makes a pseudo terminal in the sandbox's own devpts, shows that of the first
// process as /dev/console, makes it the standard streams and sends its other end to den.
func (p *program) terminal() {
	const note = "terminal"
	master, slave, at, fd := p.Cell(0), p.Cell(0), p.Cell(0), p.Cell(0)
	p.OpenInRoot(sys.Int(unix.AT_FDCWD), "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, master).Note(note)
	p.Do(unix.SYS_IOCTL, master.Value(), sys.Int(unix.TIOCSPTLCK), p.Cell(0).Addr()).Note(note)
	// By the master's own descriptor: no path that could be something else.
	p.Do(unix.SYS_IOCTL, master.Value(), sys.Int(unix.TIOCGPTPEER), sys.Int(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).To(slave).Note(note)
	if c := p.spec.Process.ConsoleSize; c != nil {
		size := uint64(c.Height&0xffff) | uint64(c.Width&0xffff)<<16 // struct winsize
		p.Do(unix.SYS_IOCTL, slave.Value(), sys.Int(unix.TIOCSWINSZ), p.Cell(size).Addr()).MayFail()
	}
	if p.o.join == nil {
		skip := p.Label()
		p.OpenInRoot(sys.Int(unix.AT_FDCWD), "/dev/console", unix.O_PATH, at).Err(skip)
		p.CloneTree(slave.Value(), "", fd, false).Err(skip)
		p.MoveMount(fd.Value(), at.Value()).MayFail()
		p.Close(fd)
		p.Mark(skip)
		p.Close(at)
	}

	p.send(master, note)
	p.Close(master)

	if uid := p.spec.Process.User.UID; uid != 0 {
		p.Do(unix.SYS_FCHOWN, slave.Value(), sys.Int(uid), sys.Int(-1)).MayFail()
	}
	p.Do(unix.SYS_IOCTL, slave.Value(), sys.Int(unix.TIOCSCTTY), sys.Int(0)).Note(note)
	for i := range 3 {
		p.Do(unix.SYS_DUP3, slave.Value(), sys.Int(i), sys.Int(0)).Note(note)
	}
	p.Close(slave)
}

// showRoot is what an error says of sending the root directory.
const showRoot = "show den the root"

// send gives den the descriptor that c holds.
func (p *program) send(c *sys.Cell, note string) {
	// One byte with the descriptor (unix(7), SCM_RIGHTS), as struct msghdr wants it.
	control := p.Words(sys.Int(20), sys.Int(uint64(unix.SOL_SOCKET|unix.SCM_RIGHTS<<32)), sys.Int(0))
	p.Do(unix.SYS_DUP, c.Value()).To(control.Part(16)).Note(note)
	iov := p.Words(p.Bytes([]byte{'f', 0, 0, 0, 0, 0, 0, 0}), sys.Int(1))
	msg := p.Words(sys.Int(0), sys.Int(0), iov, sys.Int(1), control, sys.Int(24), sys.Int(0))
	p.Do(unix.SYS_SENDMSG, sys.Int(fdSend), msg, sys.Int(0)).Note(note)
	p.Close(control.Part(16))
}
