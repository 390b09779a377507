package lower

import (
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// recorded is a directory in which this process keeps records of what files
// should be: Stat says that.
type recorded struct {
	directory
	self  sys.Owner
	names *sys.Names // of the directory, once asked for
}

// OpenRecorded opens a directory in which this process keeps records of what
// files should be, because it may not chown. See sys.InodeAttr. Its Dirs are
// one goroutine's.
func OpenRecorded(path string) (Dir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return OfRecorded(fd), nil
}

// OfRecorded is Of for such a directory.
func OfRecorded(fd int) Dir { return &recorded{directory: directory{fd}, self: sys.Self()} }

func (d *recorded) Stat(name string, st *unix.Stat_t) error {
	if err := d.directory.Stat(name, st); err != nil {
		return err
	}
	var a sys.FileAttrs
	names := &sys.Names{}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		a, err = d.directory.Attrs(name)
	default:
		names, err = d.recordedNames()
	}
	if err != nil {
		return err
	}
	i := sys.Seen(name, st, a, names, d.self)
	st.Mode, st.Uid, st.Gid, st.Rdev = i.Mode, i.UID, i.GID, i.Rdev
	return nil
}

func (d *recorded) recordedNames() (*sys.Names, error) {
	if d.names == nil {
		n, err := sys.RecordedNames(d.fd, d.self)
		if err != nil {
			return nil, err
		}
		d.names = &n
	}
	return d.names, nil
}

func (d *recorded) OpenDir(name string) (Dir, error) {
	return d.opened(sys.OpenDirAt(d.fd, name))
}

func (d *recorded) OpenBeneath(path string) (Dir, error) {
	return d.opened(sys.OpenDirBeneath(d.fd, "./"+path))
}

func (d *recorded) opened(fd int, err error) (Dir, error) {
	if err != nil {
		return nil, err
	}
	return OfRecorded(fd), nil
}
