package snapshot

import (
	"errors"
	"io"
	"iter"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/tree"
)

// Files lists what a view has at root, a directory or a file without links on the
// way, as files relative to it, which layer.Create makes elsewhere. The view has to stay open
// until they are read.
func Files(view tree.FS, root string) iter.Seq2[layer.File, error] {
	prefix := strings.Trim(root, "/")
	return func(yield func(layer.File, error) bool) {
		stop := errors.New("stop")
		err := tree.Walk(view, root, func(e *oci.Entry) error {
			full := e.Path
			f := layer.File{Entry: *e}
			if f.Path = relative(prefix, full); f.Hardlink {
				f.Link = relative(prefix, f.Link)
			}
			if e.Mode&unix.S_IFMT == unix.S_IFREG && !e.Hardlink {
				f.Open = func() (io.ReadCloser, error) { return view.Open(full) }
			}
			if !yield(f, nil) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(layer.File{}, err)
		}
	}
}

func relative(prefix, full string) string {
	rel := strings.TrimPrefix(strings.TrimPrefix(strings.Trim(full, "/"), prefix), "/")
	if prefix == "." || prefix == "" {
		rel = strings.Trim(full, "/")
	}
	if rel == "" {
		return "."
	}
	return rel
}
