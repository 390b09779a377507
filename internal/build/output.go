package build

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/image"
)

// An outputKind is what becomes of a result.
type outputKind string

const (
	outputImage  outputKind = "image"
	outputOCI    outputKind = "oci"
	outputDocker outputKind = "docker"
	outputLocal  outputKind = "local"
	outputTar    outputKind = "tar"
	outputCache  outputKind = "cacheonly"
	outputCaller outputKind = "caller"
)

// An output is one destination of a build.
type output struct {
	kind outputKind
	// dest is a path, "-" for standard output, or empty.
	dest string
	// names of the image.
	names []string
	// store keeps the image under its names, push uploads it, to a digest
	// instead of a tag if byDigest is set.
	store, push, byDigest bool
	// directory is an OCI layout that is not packed into a tar.
	directory bool
	// split puts each platform's files into a directory of its own; nil is
	// yes if there are several.
	split       *bool
	rewrite     bool
	rewriting   image.Rewriting
	format      image.Format
	annotations []string
	deliver     func(context.Context, *image.Blobs) error
}

// parseOutputs reads the outputs of a request. Their rules are buildx's
// (util/buildflags/export.go) and BuildKit's (exporter/containerimage/exptypes).
func parseOutputs(r *Request) ([]output, error) {
	var outs []output
	for _, s := range r.Outputs {
		o, err := parseOutput(s)
		if err != nil {
			return nil, err
		}
		outs = append(outs, o)
	}
	pushed := false
	for i := range outs {
		o := &outs[i]
		if r.Push && o.kind == outputImage {
			o.push = true
		}
		pushed = pushed || o.push
	}
	if r.Push && !pushed {
		outs = append(outs, output{kind: outputImage, store: true, push: true})
	}
	if d := r.Deliver; d != nil {
		outs = append(outs, output{kind: outputCaller, deliver: d.To})
	}
	if len(outs) == 0 || r.Load && !slices.ContainsFunc(outs, func(o output) bool { return o.store }) {
		outs = append(outs, output{kind: outputImage, store: true})
	}
	for i := range outs {
		o := &outs[i]
		o.rewriting, o.rewrite = r.Rewriting, o.rewrite || r.Clamp
		o.format.Compression, o.format.Level = cmp.Or(o.format.Compression, r.Format.Compression), cmp.Or(o.format.Level, r.Format.Level)
		o.format.DockerTypes = o.format.DockerTypes || r.Format.DockerTypes
		if err := o.complete(r.Tags); err != nil {
			return nil, err
		}
	}
	return outs, nil
}

func (o *output) complete(tags []string) error {
	if len(o.names) == 0 {
		o.names = tags
	}
	if o.push && len(o.names) == 0 {
		return invalid("tag is needed when pushing to registry")
	}
	if o.push && o.byDigest {
		o.store = false
	}
	return nil
}

func parseOutput(s string) (output, error) {
	fields, err := splitCSV(s)
	if err != nil {
		return output{}, invalid("output %q: %w", s, err)
	}
	if len(fields) == 1 && fields[0] == s && !strings.HasPrefix(s, "type=") {
		if s == "-" {
			return output{kind: outputTar, dest: s}, nil
		}
		return output{kind: outputLocal, dest: s}, nil
	}
	var o output
	attrs := map[string]string{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return o, invalid("output %q: invalid value %q, want key=value", s, f)
		}
		attrs[strings.ToLower(strings.TrimSpace(k))] = v
	}
	if err := o.setKind(attrs["type"]); err != nil {
		return o, err
	}
	delete(attrs, "type")
	for k, v := range attrs {
		if err := o.set(k, v); err != nil {
			return o, invalid("output %q: %s: %w", s, k, err)
		}
	}
	slices.Sort(o.annotations)
	return o, o.check()
}

func (o *output) setKind(kind string) error {
	switch kind {
	case "":
		return invalid("type is required for output")
	case "registry":
		o.kind, o.store, o.push = outputImage, true, true
	case "image", "moby":
		o.kind, o.store = outputImage, true
	case "docker", "oci", "local", "tar", "cacheonly":
		o.kind = outputKind(kind)
	default:
		return invalid("output type %q is not known, want image, registry, oci, docker, local, tar or cacheonly", kind)
	}
	return nil
}

func (o *output) set(k, v string) (err error) {
	switch k {
	case "dest":
		o.dest = v
	case "name":
		o.names = splitList([]string{v})
	case "push":
		o.push, err = strconv.ParseBool(v)
	case "push-by-digest":
		o.byDigest, err = strconv.ParseBool(v)
	case "store":
		o.store, err = strconv.ParseBool(v)
	case "tar":
		var tar bool
		tar, err = strconv.ParseBool(v)
		o.directory = !tar
	case "platform-split":
		var split bool
		split, err = strconv.ParseBool(v)
		o.split = &split
	case "rewrite-timestamp":
		o.rewrite, err = strconv.ParseBool(v)
	case "oci-mediatypes":
		var types bool
		types, err = strconv.ParseBool(v)
		o.format.DockerTypes = !types
	case "compression":
		if !slices.Contains([]string{"gzip", "zstd", "uncompressed"}, v) {
			return fmt.Errorf("%q is not supported, want gzip, zstd or uncompressed", v)
		}
		o.format.Compression = v
	case "compression-level":
		o.format.Level, err = strconv.Atoi(v)
	case "force-compression":
		o.format.Force, err = strconv.ParseBool(v)
	case "unpack", "name-canonical", "dangling-name-prefix", "prefer-nondist-layers", "buildinfo", "oci-artifact":
		// About BuildKit's own image store, or gone from it.
	default:
		key, ok := strings.CutPrefix(k, "annotation")
		if !ok {
			return fmt.Errorf("unknown attribute: %w", errdefs.ErrInvalidArgument)
		}
		return o.annotate(key, v)
	}
	return err
}

// annotate takes BuildKit's "annotation[-type][[platform]].key".
func (o *output) annotate(rest, value string) error {
	kind, key, ok := strings.Cut(rest, ".")
	if !ok || key == "" {
		return fmt.Errorf("no key")
	}
	kind, platform, has := strings.Cut(kind, "[")
	if has {
		platform = "[" + platform
	}
	kind = strings.TrimPrefix(kind, "-")
	if kind == "" {
		kind = "manifest"
	}
	o.annotations = append(o.annotations, kind+platform+":"+key+"="+value)
	return nil
}

// check refuses what does not go together.
func (o *output) check() error {
	switch o.kind {
	case outputLocal:
		if o.dest == "" || o.dest == "-" {
			return invalid("output type=local: dest must be a directory")
		}
	case outputTar:
		if o.dest == "" {
			return invalid("output type=tar: dest is needed, a file or - for standard output")
		}
	case outputOCI:
		if o.dest == "" || o.directory && o.dest == "-" {
			return invalid("output type=oci: dest is needed: a file, - for standard output, or with tar=false a directory")
		}
	case outputDocker:
		if o.directory {
			return invalid("output type=docker: tar=false is not supported, use type=oci")
		}
		if o.dest == "" { // docker load
			o.kind, o.store = outputImage, true
		}
	case outputImage:
		if o.dest != "" {
			return invalid("output type=image: dest is not supported, use type=oci or type=docker")
		}
	}
	if o.push && o.kind != outputImage {
		return invalid("output type=%s cannot be pushed, use type=image", o.kind)
	}
	return nil
}
