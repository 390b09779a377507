package layer

import (
	"den/internal/oci"
)

// A maker makes the entries of one tree, one after the other, in one of its
// forms: a placer in a directory, an imager in an image.
type maker interface {
	// place makes an entry that has no content; it reports false for a regular
	// file, which create makes.
	place(e *oci.Entry) (bool, error)
	// create makes an empty regular file where place has just been.
	create(e *oci.Entry) (room, error)
	// finish ends a file whose content was written; err is what went wrong.
	finish(r room, e *oci.Entry, err error) error
	// linked gives a hard link that was placed the attributes of its file,
	// which is what a walk of the tree will find.
	linked(e *oci.Entry) error
	// recorded counts the devices that were recorded and not made.
	recorded() int
	// close completes the tree, or ends it after err.
	close(err error) error
}

// room is where a new file's content goes: into fd, from at on. The bytes that
// nobody writes are zeros.
type room struct {
	fd    int
	at    int64
	image bool // fd holds more than this file
}

// newMaker begins the tree at path in the form that o wants.
func newMaker(path string, o UnpackOptions) (maker, error) {
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.Image {
		return newImager(path, o)
	}
	return newPlacer(path, o)
}
