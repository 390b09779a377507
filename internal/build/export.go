package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"den/internal/build/dockerfile"
	"den/internal/build/ops"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// An exporter takes the results of one build to their destinations.
type exporter struct {
	*Builder
	*plan
	results []dockerfile.Image
	refs    []*ops.Ref
	held    []io.Closer // leases on blobs that have no name yet
}

// export serves every output in turn and describes the first image.
func (b *Builder) export(ctx context.Context, p *plan, results []dockerfile.Image, refs []*ops.Ref) (*Response, error) {
	e := &exporter{Builder: b, plan: p, results: results, refs: refs}
	defer func() {
		for _, c := range e.held {
			c.Close() // only read from
		}
	}()
	var out *Response
	for _, o := range p.outputs {
		r, err := e.output(ctx, o)
		if err != nil {
			return nil, err
		}
		if out == nil || out.ImageID == "" {
			out = r
		}
	}
	return out, nil
}

// titles are BuildKit's names of its exporters.
var titles = map[outputKind]string{
	outputImage:  "exporting to image",
	outputOCI:    "exporting to oci image format",
	outputDocker: "exporting to docker image format",
	outputLocal:  "exporting to client directory",
	outputTar:    "exporting to client tarball",
	outputCaller: "exporting to image",
}

func (e *exporter) output(ctx context.Context, o output) (out *Response, err error) {
	if o.kind == outputCache {
		return &Response{Metadata: map[string]any{}}, nil
	}
	id := fmt.Sprintf("export %s %s %v", o.kind, o.dest, o.names)
	err = inVertex(e.sink, titles[o.kind], id, func(v oci.Digest) error {
		switch o.kind {
		case outputLocal, outputTar:
			out = &Response{Metadata: map[string]any{}}
			return e.files(ctx, o, v)
		case outputImage:
			out, err = e.image(ctx, o, v)
		case outputCaller:
			out, err = e.deliver(ctx, o, v)
		default:
			out, err = e.archive(ctx, o, v)
		}
		return err
	})
	return out, err
}

// images assembles the image of each platform.
func (e *exporter) images(ctx context.Context, o output, v oci.Digest) ([]*image.Image, *annotations, error) {
	notes, err := parseAnnotations(slices.Concat(e.Annotations, o.annotations))
	if err != nil {
		return nil, nil, err
	}
	if err := notes.check(o, e.results); err != nil {
		return nil, nil, err
	}
	var images []*image.Image
	for i, r := range e.results {
		var layers []image.Layer
		if e.refs[i] != nil {
			layers = e.refs[i].Layers()
		}
		config := r.Config
		if e.EditConfig != nil && len(config) > 0 {
			if config, err = e.EditConfig(config); err != nil {
				return nil, nil, err
			}
		}
		res := image.Result{
			Config: config, Base: r.Base, Layers: layers, Epoch: r.Epoch,
			Annotations:           forPlatform(notes.manifest, r.Platform),
			DescriptorAnnotations: forPlatform(notes.descriptor, r.Platform),
		}
		img, err := e.assemble(ctx, o, res, v)
		if err != nil {
			return nil, nil, err
		}
		images = append(images, img)
	}
	return images, notes, nil
}

// assemble makes an image of what the frontend and the solver left.
func (e *exporter) assemble(ctx context.Context, o output, r image.Result, v oci.Digest) (*image.Image, error) {
	if o.rewrite && r.Epoch == nil {
		e.sink.Event(progress.Event{Warning: &progress.Warning{
			Vertex: v, Level: 1, Short: []byte("rewrite-timestamp does nothing without SOURCE_DATE_EPOCH"),
		}})
	}
	w := o.rewriting
	if o.rewrite {
		w.Epoch = r.Epoch
	}
	f := o.format
	f.Sink, f.Vertex = e.sink, v
	out, held, err := e.o.Images.Rewrite(ctx, r, w, f)
	if err != nil {
		return nil, err
	}
	e.held = append(e.held, held)
	r = out
	if w.All {
		r.Base = nil
	}
	return image.Assemble(r)
}

// files writes the files of the results to a directory or a tar.
func (e *exporter) files(ctx context.Context, o output, v oci.Digest) error {
	images, _, err := e.images(ctx, o, v)
	if err != nil {
		return err
	}
	f := image.FilesOptions{Split: e.splits(o), Epoch: e.results[0].Epoch, Sink: e.sink, Vertex: v}
	done := statusOf(e.sink, v, "copying files")
	if o.kind == outputLocal {
		err = e.o.Images.ExportLocal(ctx, o.dest, images, f)
	} else {
		err = e.write(o.dest, func(w io.Writer) error { return e.o.Images.ExportTar(ctx, w, images, f) })
	}
	if err == nil {
		done()
	}
	return err
}

// image keeps an image in the store, and pushes it.
func (e *exporter) image(ctx context.Context, o output, v oci.Digest) (*Response, error) {
	images, notes, err := e.images(ctx, o, v)
	if err != nil {
		return nil, err
	}
	var target *oci.Descriptor
	var blobs *image.Blobs
	if o.push || notes.wantIndex() || o.format.DockerTypes { // of OCI's types it is when it leaves
		if blobs, err = e.blobs(ctx, o, images, notes, v); err != nil {
			return nil, err
		}
		defer blobs.Close()
		images, target = blobs.Images, &blobs.Target
	}
	names := slices.Clone(o.names)
	if o.store {
		if err := e.commit(ctx, images, names, v); err != nil {
			return nil, err
		}
	}
	if o.push {
		to := names
		if o.byDigest {
			to = atDigest(names, blobs.Target.Digest)
		}
		if err := e.o.Images.PushBlobs(ctx, blobs, to, image.PushOptions{Sink: e.sink, Vertex: v}); err != nil {
			return nil, err
		}
	}
	return respond(images, target, canonical(names)), nil
}

// commit names the image in the store; it says so in docker's words.
func (e *exporter) commit(ctx context.Context, images []*image.Image, names []string, v oci.Digest) error {
	written := statusOf(e.sink, v, "writing image "+string(images[0].ConfigDigest))
	if _, err := e.o.Images.Commit(ctx, image.Built{Names: names, Images: images}); err != nil {
		return err
	}
	written()
	for _, name := range canonical(names) {
		statusOf(e.sink, v, "naming to "+name)()
	}
	return nil
}

func (e *exporter) blobs(ctx context.Context, o output, images []*image.Image, notes *annotations, v oci.Digest) (*image.Blobs, error) {
	f := o.format
	f.Annotations, f.DescriptorAnnotations, f.Sink, f.Vertex = notes.index, notes.indexDescriptor, e.sink, v
	done := statusOf(e.sink, v, "exporting layers")
	b, err := e.o.Images.Blobs(ctx, images, f)
	if err != nil {
		return nil, err
	}
	done()
	statusOf(e.sink, v, "exporting manifest "+string(b.Target.Digest))()
	return b, nil
}

// archive writes an image to a file or a layout directory.
func (e *exporter) archive(ctx context.Context, o output, v oci.Digest) (*Response, error) {
	images, notes, err := e.images(ctx, o, v)
	if err != nil {
		return nil, err
	}
	blobs, err := e.blobs(ctx, o, images, notes, v)
	if err != nil {
		return nil, err
	}
	defer blobs.Close()
	f := o.format
	f.Sink, f.Vertex = e.sink, v
	m := e.o.Images
	switch {
	case o.directory:
		err = m.ExportLayout(ctx, o.dest, blobs, o.names, f)
	case o.kind == outputOCI:
		err = e.write(o.dest, func(w io.Writer) error { return m.ExportOCI(ctx, w, blobs, o.names, f) })
	default:
		err = e.write(o.dest, func(w io.Writer) error { return m.ExportDocker(ctx, w, blobs, o.names, f) })
	}
	if err != nil {
		return nil, err
	}
	return respond(blobs.Images, &blobs.Target, canonical(o.names)), nil
}

// deliver hands an image to the caller.
func (e *exporter) deliver(ctx context.Context, o output, v oci.Digest) (*Response, error) {
	images, notes, err := e.images(ctx, o, v)
	if err != nil {
		return nil, err
	}
	blobs, err := e.blobs(ctx, o, images, notes, v)
	if err != nil {
		return nil, err
	}
	defer blobs.Close()
	if err := o.deliver(ctx, blobs); err != nil {
		return nil, err
	}
	return respond(blobs.Images, &blobs.Target, canonical(o.names)), nil
}

// write calls fn with standard output or with a file, which appears whole or
// not at all.
func (e *exporter) write(dest string, fn func(io.Writer) error) (err error) {
	if dest == "-" {
		if e.Stdout == nil {
			return invalid("no standard output to write to")
		}
		return fn(e.Stdout)
	}
	if fi, err := os.Stat(dest); err == nil && !fi.Mode().IsRegular() {
		return intoSpecial(dest, fn)
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(dest), "."+filepath.Base(dest)+".*")
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	err = errors.Join(fn(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), dest)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("output %s: %w", dest, err), os.Remove(f.Name()))
	}
	return nil
}

// intoSpecial writes to what cannot be replaced, such as a pipe or /dev/null.
func intoSpecial(dest string, fn func(io.Writer) error) error {
	f, err := os.OpenFile(dest, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := errors.Join(fn(f), f.Close()); err != nil {
		return fmt.Errorf("output %s: %w", dest, err)
	}
	return nil
}

// splits says whether each platform's files get a directory of their own.
func (e *exporter) splits(o output) bool {
	if o.split != nil {
		return *o.split
	}
	return len(e.results) > 1
}

// canonical spells names as they are recorded.
func canonical(names []string) []string {
	var out []string
	for _, n := range names {
		if ref, err := oci.ParseReference(n); err == nil {
			n = ref.String()
		}
		out = append(out, n)
	}
	return out
}

// atDigest replaces the tags of names by a digest.
func atDigest(names []string, d oci.Digest) []string {
	var out []string
	for _, n := range names {
		ref, err := oci.ParseName(n)
		if err == nil {
			n = ref.Name() + "@" + string(d)
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// statusOf shows that something began; the result is called when it is done.
func statusOf(sink progress.Sink, v oci.Digest, name string) func() {
	start := time.Now()
	s := progress.Status{ID: name, Name: name, Vertex: v, Timestamp: start, Started: &start}
	first := s
	sink.Event(progress.Event{Status: &first})
	return func() {
		end := time.Now()
		s.Timestamp, s.Completed = end, &end
		sink.Event(progress.Event{Status: &s})
	}
}
