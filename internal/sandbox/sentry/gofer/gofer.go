// Package gofer serves directories and files of the outer container to a
// sandbox whose kernel is gVisor's sentry, by the lisafs protocol.
//
// The other side is hostile: it is the program that runs in the sandbox, if
// that has taken over the sentry. Four rules keep it inside:
//
//   - Everything is reached from a descriptor, one name at a time, and no
//     symbolic link is followed. No path that the sandbox names is ever
//     resolved by the kernel.
//   - Descriptors of what was walked to are O_PATH: to look at a device, a
//     named pipe or a socket does nothing to it.
//   - No device node is made or opened. A node that the sandbox makes is an
//     empty file with a record (sys.InodeAttr).
//   - den's own attributes, user.den.*, are not there for the sandbox.
//
// Who may not chown keeps a record of what each file should be: owner, full
// mode and type. Regular files and directories carry it themselves
// (sys.InodeAttr), the directory carries those of links, pipes and sockets
// (sys.NamesAttr). On disk such files have modes that let their owner work
// with them. docs/design/gofer.md describes it.
package gofer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/unet"

	"den/internal/sys"
)

// Owners says what becomes of the owners and modes that a sandbox gives files.
type Owners int

// The ways to keep owners.
const (
	// Tried uses Real where sys.MayChown, else Recorded.
	Tried Owners = iota
	// Real sets owners and modes, and records only device nodes.
	Real
	// Recorded records them. Files of the process itself are root's in the
	// sandbox unless their record says otherwise.
	Recorded
)

// DefaultMaxFiles bounds the files that a sandbox may hold open in one tree.
const DefaultMaxFiles = 1 << 16

// Options are how a tree is served.
type Options struct {
	ReadOnly bool
	Owners   Owners
	// MaxFiles bounds the descriptors that a connection holds; 0 is
	// DefaultMaxFiles. Whoever wants more gets ENFILE.
	MaxFiles int
}

// A Tree is a directory, or one file, that can be served. Open makes it, and
// one call of Serve uses it up.
type Tree struct {
	root *os.File
	// at is where root is, if only its directory may know whose it is.
	at place
	// proc is /proc/self/fd, where a descriptor becomes another kind of it.
	proc *os.File

	readOnly bool
	recorded bool
	self     sys.Owner
	limit    int64
	files    atomic.Int64
	memory   memory
	warning  string
}

// Open prepares to serve what root is open on; O_PATH is enough. It takes root over.
func Open(root *os.File, o Options) (*Tree, error) {
	t := &Tree{
		root: root, at: nowhere(), readOnly: o.ReadOnly, limit: int64(o.MaxFiles), memory: newMemory(),
		self: sys.Self(),
	}
	if t.limit <= 0 {
		t.limit = DefaultMaxFiles
	}
	t.recorded = o.Owners == Recorded || (o.Owners == Tried && !sys.MayChown())
	proc, err := os.OpenFile("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("serve %s: %w", root.Name(), err)
	}
	t.proc = proc
	if t.recorded {
		t.at = above(root)
	}
	if t.recorded && !t.readOnly {
		t.warning = t.tryAttributes()
	}
	return t, nil
}

// tryAttributes says what is lost if the file system keeps no attributes.
func (t *Tree) tryAttributes() string {
	_, err := unix.Getxattr(procPath(int(t.root.Fd())), sys.InodeAttr, make([]byte, 1))
	if !errors.Is(err, unix.ENOTSUP) {
		return ""
	}
	return fmt.Sprintf("%s: its file system keeps no user attributes (tmpfs needs Linux 6.6): owners and modes that are set in the sandbox are forgotten when it ends", t.root.Name())
}

// Warning is a sentence for the user about what cannot be kept, or empty.
func (t *Tree) Warning() string { return t.warning }

// Recorded says whether owners are recorded because they cannot be set.
func (t *Tree) Recorded() bool { return t.recorded }

// Close gives a tree back that was not served.
func (t *Tree) Close() error {
	if t.at.dirfd >= 0 {
		_ = unix.Close(t.at.dirfd)
		t.at = nowhere()
	}
	return errors.Join(t.root.Close(), t.proc.Close())
}

// above is the place of a link, pipe or socket that is served alone. Nothing is
// changed there: it is not part of the tree.
func above(root *os.File) place {
	var st, here unix.Stat_t
	if unix.Fstat(int(root.Fd()), &st) != nil || attributed(st.Mode) {
		return nowhere()
	}
	path, err := os.Readlink(procPath(int(root.Fd())))
	if err != nil || !filepath.IsAbs(path) {
		return nowhere()
	}
	fd, err := openat(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nowhere()
	}
	p := place{fd, filepath.Base(path)}
	if sys.LstatAt(fd, p.name, &here) != nil || here.Ino != st.Ino || here.Dev != st.Dev {
		_ = unix.Close(fd)
		return nowhere()
	}
	return p
}

// Serve answers a client on conn, a connected unix stream socket, until the
// client goes or ctx ends. It takes conn over and closes the tree. The
// process's umask has to be 0, or modes are repaired one by one.
func (t *Tree) Serve(ctx context.Context, conn *os.File) error {
	defer func() { _ = t.Close() }()
	fd, err := unix.FcntlInt(conn.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("serve %s: %w", t.root.Name(), err)
	}
	sock, err := unet.NewSocket(fd)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("serve %s: %w", t.root.Name(), err)
	}
	server := lisafs.NewServer()
	defer server.Destroy()
	c, err := server.CreateConnection(sock, "/", t.connectionOpts(), (*connection)(t))
	if err != nil {
		return fmt.Errorf("serve %s: %w", t.root.Name(), errors.Join(err, sock.Close()))
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.Shutdown() })
	defer stop()
	server.StartConnection(c)
	server.Wait()
	return ctx.Err()
}

func (t *Tree) connectionOpts() lisafs.ConnectionOpts {
	// All of these work on descriptors, so that they are safe on deleted
	// files and next to renames.
	return lisafs.ConnectionOpts{Readonly: t.readOnly, WalkStatSupported: true,
		SetAttrOnDeleted: true, AllocateOnDeleted: true, OpenOnDeleted: true}
}

// Serve opens root and serves it; see Open and Tree.Serve.
func Serve(ctx context.Context, conn, root *os.File, o Options) error {
	t, err := Open(root, o)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	return t.Serve(ctx, conn)
}
