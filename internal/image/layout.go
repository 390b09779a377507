package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"den/internal/oci"
)

// layout is what an archive is written to.
type layout interface {
	put(name string, size int64, r io.Reader) error
	// index returns the index.json that is there, nil without one.
	index() (*oci.Index, error)
}

// tarLayout writes a layout as a tar. No header in it depends on the time or
// the user.
type tarLayout struct {
	w    *tar.Writer
	dirs map[string]bool
}

func (t *tarLayout) index() (*oci.Index, error) { return nil, nil }

func (t *tarLayout) put(name string, size int64, r io.Reader) error {
	if err := t.mkdir(path.Dir(name)); err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: size, ModTime: time.Unix(0, 0)}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(t.w, r)
	return err
}

func (t *tarLayout) mkdir(dir string) error {
	if dir == "." || t.dirs[dir] {
		return nil
	}
	if err := t.mkdir(path.Dir(dir)); err != nil {
		return err
	}
	if t.dirs == nil {
		t.dirs = map[string]bool{}
	}
	t.dirs[dir] = true
	return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
}

// dirLayout writes a layout into a directory. A file appears whole.
type dirLayout struct{ root *os.Root }

func (d *dirLayout) index() (*oci.Index, error) {
	f, err := d.root.Open("index.json")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, oci.MaxManifestBytes+1))
	if err != nil {
		return nil, err
	}
	return oci.ParseIndex(raw, oci.MediaTypeIndex)
}

func (d *dirLayout) put(name string, size int64, r io.Reader) error {
	if st, err := d.root.Stat(name); err == nil && path.Dir(name) != "." && st.Size() == size {
		return nil // a blob's name is its content
	}
	if err := d.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	tmp := name + ".tmp-" + fmt.Sprint(os.Getpid())
	f, err := d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = release(err, f); err == nil {
		err = d.root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, d.root.Remove(tmp))
	}
	return nil
}

// release closes c and joins its error to err.
func release(err error, c io.Closer) error { return errors.Join(err, c.Close()) }
