package erofs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"den/internal/sys"
)

// maxXattrs bounds the attributes of one inode.
const maxXattrs = 256

// readAttrs reads the archive of attributes, if there is one. The attributes
// belong to inodes, whichever of their names the archive has.
func (r *Reader) readAttrs(name string) error {
	f, err := os.OpenFile(name, openFlags, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(r.attrsOf(tar.NewReader(f)), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path.Base(name), err)
	}
	return nil
}

func (r *Reader) attrsOf(tr *tar.Reader) error {
	at := finder{r: r}
	for entries := uint64(0); ; entries++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken("%v", err)
		}
		if entries > r.maxNames() {
			return broken("more entries than the image has")
		}
		xattrs, err := xattrsOf(h.PAXRecords)
		if err != nil || len(xattrs) == 0 {
			if err != nil {
				return err
			}
			continue
		}
		n, err := at.find(path.Clean(h.Name))
		if err != nil {
			return broken("%.200s: %v", h.Name, err)
		}
		if r.attrs == nil {
			r.attrs = map[uint64]map[string][]byte{}
		}
		r.attrs[n.NID] = xattrs
	}
}

// maxNames bounds the names in the image: each takes a directory entry.
func (r *Reader) maxNames() uint64 { return uint64(r.size) / direntSize }

func xattrsOf(records map[string]string) (map[string][]byte, error) {
	var xattrs map[string][]byte
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !sys.KeepXattr(name) {
			continue
		}
		if len(value) > sys.MaxXattr || len(xattrs) == maxXattrs {
			return nil, broken("more than %d attributes, or one of %d bytes", maxXattrs, len(value))
		}
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = []byte(value)
	}
	return xattrs, nil
}

// finder finds inodes by path and passes no symbolic link. It stays in the
// directory of the last one: an archive is sorted.
type finder struct {
	r     *Reader
	stack []*Dir // from the root
	names []string
}

func (f *finder) find(path string) (Inode, error) {
	if len(f.stack) == 0 {
		root, err := f.r.OpenRoot()
		if err != nil {
			return Inode{}, err
		}
		f.stack = []*Dir{root}
	}
	var parts []string
	if dir := dirOf(path); dir != "" {
		parts = strings.Split(dir, "/")
	}
	keep := 0
	for keep < len(parts) && keep < len(f.names) && parts[keep] == f.names[keep] {
		keep++
	}
	f.names, f.stack = f.names[:keep], f.stack[:keep+1]
	for _, part := range parts[keep:] {
		d, err := f.stack[len(f.stack)-1].Dir(part)
		if err != nil {
			return Inode{}, err
		}
		f.names, f.stack = append(f.names, part), append(f.stack, d)
	}
	return f.stack[len(f.stack)-1].Lookup(baseOf(path))
}
