package erofs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// Options change what a Writer does.
type Options struct {
	// Parent describes a directory that an entry lies in and none names, as
	// the layers below have it; nil if they have none. Without it, such a
	// directory is root's, 0755, of 1970.
	Parent func(path string) (*oci.Entry, error)
	// MaxDirs bounds the directories, also those that no entry names; 0 is no
	// bound.
	MaxDirs int
}

// A Writer makes one image. It is not for several goroutines, but content may
// be written from any. Its memory grows with the number of entries, about 200
// bytes for each beside its name, and not with their content.
type Writer struct {
	o    Options
	f    *os.File
	path string
	end  int64 // of the content so far, and of its last block
	root *node
	dirs int

	asked     *node  // the directory that was entered last,
	askedPath string // and how it was named
}

// Create begins an image at path, which must not exist. Close or Abort ends it.
func Create(path string, o Options) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	root := oci.Entry{Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(0, 0)}
	return &Writer{o: o, f: f, path: path, end: blockSize, root: newDir(&root, nil, "")}, nil
}

// Fd is the descriptor to write content to.
func (w *Writer) Fd() int { return int(w.f.Fd()) }

// Path is where the image is.
func (w *Writer) Path() string { return w.path }

// Abort removes what was written.
func (w *Writer) Abort() error {
	return errors.Join(w.f.Close(), Remove(w.path))
}

// Close writes everything but the content, and the sidecars. When it fails,
// nothing is left. What it wrote is not synced to the disk.
func (w *Writer) Close() error {
	err := w.finish()
	if err != nil {
		return errors.Join(fmt.Errorf("write image %s: %w", w.path, err), w.Abort())
	}
	if err := w.f.Close(); err != nil {
		return errors.Join(fmt.Errorf("write image: %w", err), Remove(w.path))
	}
	return nil
}

func (w *Writer) finish() error {
	l := layout{meta: w.end}
	if err := l.place(w.root); err != nil {
		return err
	}
	if err := l.write(w.f); err != nil {
		return err
	}
	if err := w.sidecars(); err != nil {
		return err
	}
	if err := l.super(w.f); err != nil {
		return err
	}
	// Complete: nobody changes it any more.
	return w.f.Chmod(0o444)
}

// Remove removes an image and its sidecars. What is gone already is no error.
func Remove(path string) error {
	var errs []error
	for _, suffix := range []string{"", OpaqueSuffix, AttrsSuffix} {
		if err := os.Remove(path + suffix); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
