package layer

import (
	"errors"

	"golang.org/x/sys/unix"

	"den/internal/erofs"
	"den/internal/failpoint"
	"den/internal/oci"
)

// An imager makes entries in the image of a tree. There nothing depends on what
// this process may do: owners, modes and devices are numbers.
type imager struct {
	w *erofs.Writer
	o UnpackOptions
}

// newImager begins an image at path, which does not exist.
func newImager(path string, o UnpackOptions) (*imager, error) {
	i := &imager{o: o}
	options := erofs.Options{MaxDirs: o.MaxEntries}
	if o.Owner != nil {
		options.Parent = func(path string) (*oci.Entry, error) {
			e := impliedDir(path)
			return i.owned(&e), nil
		}
	}
	w, err := erofs.Create(path, options)
	if err != nil {
		return nil, err
	}
	i.w = w
	return i, nil
}

// owned is e with the owner that all entries shall have.
func (i *imager) owned(e *oci.Entry) *oci.Entry {
	if i.o.Owner == nil || e.Hardlink {
		return e
	}
	c := *e
	c.UID, c.GID = i.o.Owner.UID, i.o.Owner.GID
	return &c
}

func (i *imager) place(e *oci.Entry) (bool, error) {
	if e.Mode&unix.S_IFMT == unix.S_IFREG && !e.Hardlink && !e.Whiteout && e.Path != "." {
		return false, nil
	}
	_, err := i.w.Add(i.owned(e))
	return true, err
}

func (i *imager) create(e *oci.Entry) (room, error) {
	if err := failpoint.Hit("layer.place.create"); err != nil {
		return room{}, err
	}
	at, err := i.w.Add(i.owned(e))
	return room{fd: i.w.Fd(), at: at, image: true}, err
}

func (i *imager) finish(_ room, _ *oci.Entry, err error) error { return err }

// linked has nothing to do: Add did it.
func (i *imager) linked(*oci.Entry) error { return nil }

func (i *imager) recorded() int { return 0 }

func (i *imager) close(err error) error {
	if err != nil {
		return errors.Join(err, i.w.Abort())
	}
	return i.w.Close()
}
