package image

import (
	"context"
	"fmt"
	"io"
	"iter"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

// FilesOptions refine ExportLocal and ExportTar.
type FilesOptions struct {
	// Split puts each platform's files into a directory of its own
	// ("linux_amd64"), which several platforms in a tar need.
	Split bool
	// Epoch is SOURCE_DATE_EPOCH: the time of every file. Nil keeps theirs.
	Epoch *time.Time
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// ExportTar writes the files of images to w as a tar (type=tar).
func (m *Images) ExportTar(ctx context.Context, w io.Writer, images []*Image, o FilesOptions) error {
	if len(images) > 1 && !o.Split {
		return fmt.Errorf("export files: a tar holds several platforms in directories only: %w", errdefs.ErrInvalidArgument)
	}
	var parts []part
	defer func() {
		for _, p := range parts {
			closeTrees(p.trees) // read to the end or given up: nothing was written to them
		}
	}()
	for _, img := range images {
		p, err := m.part(ctx, img, o)
		if err != nil {
			return fmt.Errorf("export files: %w", err)
		}
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b part) int { return strings.Compare(a.dir, b.dir) })
	all := func(yield func(layer.File, error) bool) {
		for _, p := range parts {
			for f, err := range p.files(o) {
				if !yield(f, err) {
					return
				}
			}
		}
	}
	if _, err := layer.WriteTar(ctx, w, all); err != nil {
		return fmt.Errorf("export files: %w", err)
	}
	return nil
}

// part is the file system of one platform in an export.
type part struct {
	dir   string // "" for the root
	trees []*store.Layer
}

func (m *Images) part(ctx context.Context, img *Image, o FilesOptions) (part, error) {
	trees, err := m.Trees(ctx, img.Layers, TreeOptions{Sink: o.Sink, Vertex: o.Vertex})
	if err != nil {
		return part{}, err
	}
	p := part{trees: trees}
	if o.Split {
		p.dir = strings.ReplaceAll(platforms.Format(img.Platform), "/", "_")
	}
	return p, nil
}

// files yields the part's files in canonical order, moved below its
// directory.
func (p part) files(o FilesOptions) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		if p.dir != "" {
			top := layer.File{Entry: oci.Entry{Path: p.dir, Mode: unix.S_IFDIR | 0o755}}
			if o.Epoch != nil {
				top.ModTime = *o.Epoch
			}
			if !yield(top, nil) {
				return
			}
		}
		for f, err := range Flatten(p.trees) {
			if err == nil && f.Path == "." {
				continue
			}
			if p.dir != "" {
				f.Path = path.Join(p.dir, f.Path)
				if f.Hardlink {
					f.Link = path.Join(p.dir, f.Link)
				}
			}
			if o.Epoch != nil {
				f.ModTime = *o.Epoch
			}
			if !yield(f, err) || err != nil {
				return
			}
		}
	}
}

// Flatten yields the files of a stack of layers, bottom first, as somebody in
// a container sees them, in canonical order. The root comes first, as ".".
func Flatten(trees []*store.Layer) iter.Seq2[layer.File, error] {
	var dirs []string
	for _, t := range slices.Backward(trees) {
		dirs = append(dirs, t.Dirs()...)
	}
	return func(yield func(layer.File, error) bool) {
		for f, err := range layer.WalkStack(dirs) {
			if err == nil && f.Whiteout {
				continue // nothing is below it
			}
			f.Opaque = false
			if !yield(f, err) {
				return
			}
		}
	}
}
