package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
)

// Files of a detached sandbox's directory. Each is written once or only appended to, so
// that it is true whoever is killed when:
//
//	state    what den decided before the start; whoever adopts has to know it
//	made     a line for each mount point that den makes, before it does
//	records  pid, end and how it ended, appended by the holder
//	control  a pipe for signals; the holder keeps it open for reading and writing
//	alive    a pipe that ends with the holder, when the leases are released
//	take     the socket of who asks the holder for the terminal, for a moment
//	cgroup   the cgroup that it got after the start
const (
	fileState   = "state"
	fileMade    = "made"
	fileRecords = "records"
	fileControl = "control"
	fileAlive   = "alive"
	fileTake    = "take"
)

// More kinds of records, beside those of the status pipe.
const (
	recordHolder = 1<<32 | 4 // the holder's own process id
	recordOOM    = 1<<32 | 5 // the kernel killed for want of memory
)

// detachState is the file state. Fields are only added.
type detachState struct {
	// PidNamespace and UserNamespace are those in which process ids and rights mean something.
	PidNamespace, UserNamespace string
	// Root has no leases: those are the holder's.
	Root          oci.Mount
	Terminal      bool
	CgroupVersion int               `json:",omitempty"`
	Cgroups       map[string]string `json:",omitempty"`
	// Filter is compiled, for programs of Exec.
	Filter      []byte                    `json:",omitempty"`
	FilterFlags []specs.LinuxSeccompFlag  `json:",omitempty"`
	FilterFor   *specs.LinuxSeccompAction `json:",omitempty"`
}

// maxStateBytes bounds the files that are read back.
const maxStateBytes = 16 << 20

// A detached is what den has of a detached sandbox's directory.
type detached struct {
	dir     *os.File
	records *os.File
	made    *os.File // nil until something is made
	// leash ends the sandbox if den dies before it has told the holder to go on alone.
	leash   *os.File
	leashed *os.File // the holder's end, until it has started
}

// checkDetach refuses requests whose streams would end with den.
func checkDetach(r *Request) error {
	for name, s := range map[string]any{"stdin": r.Stdin, "stdout": r.Stdout, "stderr": r.Stderr} {
		if s == nil {
			continue
		}
		if _, ok := s.(*os.File); !ok {
			return fmt.Errorf("sandbox %s: %s of a detached sandbox is not a file: %w", r.ID, name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// newDetached fills the directory of r with all that has to be known before the holder starts.
func newDetached(r *Request, s *running) (_ *detached, err error) {
	d := &detached{}
	defer func() {
		if err != nil {
			d.discard()
			err = fmt.Errorf("directory %s: %w", r.Detach, err)
		}
	}()
	if d.dir, err = os.Open(r.Detach); err != nil {
		return nil, err
	}
	st := detachState{Root: r.Root, Terminal: r.Spec.Process.Terminal, Filter: s.filter}
	st.Root.Hold = nil
	if st.PidNamespace, st.UserNamespace, err = ownNamespaces(); err != nil {
		return nil, err
	}
	if f := s.seccomp; f != nil {
		st.FilterFlags, st.FilterFor = f.Flags, &f.DefaultAction
	}
	if c := s.cgroup.Load(); c != nil {
		st.CgroupVersion, st.Cgroups = c.v, c.m.GetPaths()
	}
	b, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	f, err := d.create(fileState)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close(), failpoint.Hit("sandbox.detach.after-state")); err != nil {
		return nil, err
	}
	d.records, err = d.create(fileRecords)
	return d, err
}

// ownNamespaces names the calling process's.
func ownNamespaces() (pid, user string, err error) {
	if pid, err = os.Readlink("/proc/self/ns/pid"); err != nil {
		return "", "", err
	}
	user, err = os.Readlink("/proc/self/ns/user")
	if errors.Is(err, os.ErrNotExist) { // a kernel without
		err = nil
	}
	return pid, user, err
}

// create makes a file that is only appended to.
func (d *detached) create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(d.dir.Name(), name), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
}

// connect makes the pipes: den's ends go to p, the holder's stay here until it has started.
func (d *detached) connect(p *pipes) (err error) {
	for _, name := range []string{fileControl, fileAlive} {
		if err := unix.Mkfifoat(int(d.dir.Fd()), name, 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: name, Err: err}
		}
	}
	// For reading and writing: its end, when den is gone, means nothing to the holder.
	if p.control, err = d.pipe(fileControl, unix.O_RDWR); err != nil {
		return err
	}
	if p.toHolder, err = d.pipe(fileControl, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
		return err
	}
	if p.fromHolder, err = d.pipe(fileAlive, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return err
	}
	if p.status, err = d.pipe(fileAlive, unix.O_WRONLY); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	d.leash, d.leashed = os.NewFile(uintptr(fds[0]), "leash"), os.NewFile(uintptr(fds[1]), "leash")
	return nil
}

// pipe opens one of the directory's pipes; den's own ends can be polled.
func (d *detached) pipe(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(d.dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// files are what the holder gets after its leases, in the order of the plan's descriptors.
func (d *detached) files() []*os.File { return []*os.File{d.records, d.leashed, d.dir} }

// release tells the holder to go on without den, and gives it the terminal to keep. A
// holder that is gone already has written why.
func (d *detached) release(master *os.File) error {
	if err := failpoint.Hit("sandbox.detach.before-release"); err != nil {
		return err
	}
	var rights []byte
	if master != nil {
		fd, err := filesFd(master)
		if err != nil {
			return err
		}
		rights = unix.UnixRights(fd)
	}
	// What the leash was in the holder's list for ppoll: nothing to wait for.
	word := binary.LittleEndian.AppendUint64(nil, uint64(^uint32(0)))
	err := unix.Sendmsg(int(d.leash.Fd()), word, rights, nil, unix.MSG_NOSIGNAL)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("detach: %w", err)
	}
	d.leash.Close()
	return failpoint.Hit("sandbox.detach.after-release")
}

// filesFd is f's descriptor without making f blocking.
func filesFd(f *os.File) (fd int, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = c.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// closeHolders closes what only the holder has to have.
func (d *detached) closeHolders() {
	if d != nil && d.leashed != nil {
		d.leashed.Close()
		d.leashed = nil
	}
}

// close closes what den has. The files stay for who adopts.
func (d *detached) close() {
	if d == nil {
		return
	}
	d.closeHolders()
	for _, f := range []*os.File{d.dir, d.records, d.made, d.leash} {
		if f != nil {
			f.Close()
		}
	}
}

// discard leaves the directory empty, where nothing has come to run.
func (d *detached) discard() {
	if d == nil {
		return
	}
	if d.dir != nil {
		for _, name := range []string{fileMade, fileTake, fileCgroup, fileAlive, fileControl, fileRecords, fileState} {
			_ = os.Remove(filepath.Join(d.dir.Name(), name))
		}
	}
	d.close()
}

// note writes down a mount point, or a directory that the overlay copies for one, before it is made.
func (d *detached) note(kind byte, path string) (err error) {
	if d.made == nil {
		if d.made, err = d.create(fileMade); err != nil {
			return err
		}
	}
	_, err = d.made.WriteString(string(kind) + strconv.Quote(path) + "\n")
	return err
}

// Kinds of lines in the file made.
const (
	noteMade   = 'm'
	noteCopied = 'c'
)

// readMade reads what was noted; a last line that is not whole was not acted on.
func readMade(r io.Reader) (made, copied []string) {
	b, _ := io.ReadAll(io.LimitReader(r, maxStateBytes))
	for line := range strings.Lines(string(b)) {
		line, whole := strings.CutSuffix(line, "\n")
		if !whole || line == "" {
			continue
		}
		path, err := strconv.Unquote(line[1:])
		switch {
		case err != nil:
		case line[0] == noteMade:
			made = append(made, path)
		case line[0] == noteCopied:
			copied = append(copied, path)
		}
	}
	return made, copied
}

// settled notes what is known only before the cgroup is removed, and that nothing is left to
// be taken back.
func (d *detached) settled() {
	if d == nil {
		return
	}
	_ = unix.Unlinkat(int(d.dir.Fd()), fileMade, 0)
}

// noteOOM keeps for who adopts what the cgroup knew.
func (d *detached) noteOOM() {
	if d != nil && d.records != nil {
		_, _ = d.records.Write(record(recordOOM, 1))
	}
}
