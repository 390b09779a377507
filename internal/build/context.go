package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/build/ops"
	"den/internal/layer"
	"den/internal/oci"
)

// maxDockerfileBytes is the frontend's own bound, so that what is copied for
// it is not larger than what it reads.
const maxDockerfileBytes = 16<<20 + 1

// inputs are what a build reads, by the names that its definition uses.
type inputs struct {
	locals  map[string]*ops.Local
	layouts map[string]string
	opts    map[string]string // added to the frontend's
	// dockerfile is the path that findings are shown under.
	dockerfile string
	cleanup    []func() error
}

func (in *inputs) Close() error {
	var errs []error
	for _, f := range in.cleanup {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// local adds a directory.
func (in *inputs) local(name, dir string) {
	in.locals[name] = &ops.Local{Dir: dir}
}

// temp makes a directory that goes with the build.
func (b *Builder) temp(ctx context.Context, in *inputs) (string, error) {
	d, err := b.o.Store.NewDraft(ctx)
	if err != nil {
		return "", err
	}
	in.cleanup = append(in.cleanup, d.Close)
	return d.Dir(), nil
}

// open finds the main context, the Dockerfile and the named contexts. Its
// rules are buildx's (build/opt.go, LoadInputs).
func (b *Builder) open(ctx context.Context, r *Request) (*inputs, error) {
	in := &inputs{locals: map[string]*ops.Local{}, layouts: map[string]string{}, opts: map[string]string{}}
	err := b.openMain(ctx, r, in)
	if err == nil {
		err = openNamed(r, in)
	}
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

func (b *Builder) openMain(ctx context.Context, r *Request, in *inputs) error {
	in.opts["filename"] = "Dockerfile"
	in.dockerfile = r.File
	switch {
	case r.Tar != nil:
		return b.openTar(ctx, r, in, r.Tar)
	case r.Context == "":
		return invalid("the build needs a context: a directory, a URL or -")
	case r.Context == "-":
		return b.openStdin(ctx, r, in)
	case isDir(r.Context):
		dir, err := inside(r.Context, r.SubDir)
		if err != nil {
			return err
		}
		in.local("context", dir)
		return b.openDockerfile(ctx, r, in, dir)
	case isRemote(r.Context):
		in.opts["context"] = r.Context
		return b.openDockerfile(ctx, r, in, "")
	}
	if _, err := os.Stat(r.Context); err == nil {
		return invalid("unable to prepare context: path %q is not a directory", r.Context)
	}
	return invalid("unable to prepare context: path %q not found", r.Context)
}

// openDockerfile finds the Dockerfile of a build in the directory dir, or in a
// remote context if that is empty.
func (b *Builder) openDockerfile(ctx context.Context, r *Request, in *inputs, dir string) error {
	switch {
	case r.File == "-":
		if r.Stdin == nil {
			return invalid("no standard input to read the Dockerfile from")
		}
		return b.copyDockerfile(ctx, in, r.Stdin, "standard input")
	case isHTTP(r.File):
		return b.fetchDockerfile(ctx, in, r.File)
	case dir == "" && !filepath.IsAbs(r.File):
		if r.File != "" {
			in.opts["filename"] = filepath.ToSlash(r.File)
		}
		return nil
	case r.File == "":
		in.local("dockerfile", dir)
		in.dockerfile = filepath.Join(dir, "Dockerfile")
		return nil
	}
	path := r.File
	if _, err := os.Stat(path); err != nil && dir != "" && !filepath.IsAbs(path) {
		// Relative to here as buildx has it, else to the context as the
		// classic builder also had it.
		if inside := filepath.Join(dir, path); isFile(inside) {
			path = inside
		}
	}
	in.dockerfile = path
	in.local("dockerfile", filepath.Dir(path))
	in.opts["filename"] = filepath.Base(path)
	if dir == "" {
		in.opts["dockerfilekey"] = "dockerfile"
	}
	return nil
}

// copyDockerfile takes a Dockerfile that is not a file.
func (b *Builder) copyDockerfile(ctx context.Context, in *inputs, from io.Reader, what string) error {
	dir, err := b.temp(ctx, in)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(from, maxDockerfileBytes))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("dockerfile from %s: %w", what, err)
	}
	in.local("dockerfile", dir)
	in.opts["filename"], in.opts["dockerfilekey"] = "Dockerfile", "dockerfile"
	in.dockerfile = "Dockerfile"
	return nil
}

// fetchTimeout is how long a server may take to send a Dockerfile.
const fetchTimeout = 2 * time.Minute

func (b *Builder) fetchDockerfile(ctx context.Context, in *inputs, url string) error {
	late := fmt.Errorf("dockerfile %s: the server did not send it within %s: %w", url, fetchTimeout, errdefs.ErrUnavailable)
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, late)
	defer cancel()
	err := b.fetch(ctx, in, url)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// fetch takes a Dockerfile from a server.
func (b *Builder) fetch(ctx context.Context, in *inputs, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return invalid("dockerfile %s: %w", url, err)
	}
	client := http.Client{Transport: b.o.Transport}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("dockerfile: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("dockerfile %s: the server says %s", url, resp.Status)
	}
	return b.copyDockerfile(ctx, in, resp.Body, url)
}

// openStdin takes a tar, or a Dockerfile that needs no context, from standard
// input.
func (b *Builder) openStdin(ctx context.Context, r *Request, in *inputs) error {
	if r.File == "-" {
		return invalid("invalid argument: can't use stdin for both build context and dockerfile")
	}
	if r.Stdin == nil {
		return invalid("no standard input to read the context from")
	}
	stdin := bufio.NewReaderSize(r.Stdin, 2*tarBlock)
	head, err := stdin.Peek(2 * tarBlock)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("context from standard input: %w", err)
	}
	if isArchive(head) {
		return b.openTar(ctx, r, in, stdin)
	}
	if r.File != "" {
		return invalid("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
	}
	empty, err := b.temp(ctx, in)
	if err != nil {
		return err
	}
	in.local("context", empty)
	return b.copyDockerfile(ctx, in, stdin, "standard input")
}

func (b *Builder) openTar(ctx context.Context, r *Request, in *inputs, from io.Reader) error {
	dir, err := b.temp(ctx, in)
	if err != nil {
		return err
	}
	if err := b.unpackContext(ctx, from, dir); err != nil {
		return fmt.Errorf("context: %w", err)
	}
	if dir, err = inside(dir, r.SubDir); err != nil {
		return err
	}
	in.local("context", dir)
	if isHTTP(r.File) || filepath.IsAbs(r.File) && isFile(r.File) {
		return b.openDockerfile(ctx, r, in, dir)
	}
	in.local("dockerfile", dir)
	if r.File != "" {
		in.opts["filename"] = filepath.ToSlash(r.File)
	}
	return nil
}

// unpackContext unpacks a tar into a directory of our own.
func (b *Builder) unpackContext(ctx context.Context, from io.Reader, dir string) error {
	buffered := bufio.NewReaderSize(from, 2*tarBlock)
	head, err := buffered.Peek(2 * tarBlock)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !isArchive(head) {
		return invalid("it is not a tar archive, nor a compressed one")
	}
	plain, _, err := layer.Decompress(buffered)
	if err != nil {
		return err
	}
	owner := layer.Owner{} // whoever it is: what is copied from a context is root's
	if b.o.Recorded {
		owner = layer.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	}
	_, err = layer.Unpack(ctx, plain, dir, layer.UnpackOptions{Archive: true, Unnamed: true, Owner: &owner, InUserns: b.o.InUserns})
	return errors.Join(err, plain.Close())
}

// inside is a directory below another, which may be a stranger's: a symbolic link
// does not lead out.
func inside(dir, sub string) (string, error) {
	if sub == "" {
		return dir, nil
	}
	top, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	path, err := filepath.EvalSymlinks(filepath.Join(top, filepath.FromSlash("/"+sub)))
	if err == nil && path != top && !strings.HasPrefix(path, strings.TrimSuffix(top, "/")+"/") {
		err = invalid("it leads out of the context")
	}
	if err == nil && !isDir(path) {
		err = invalid("it is not a directory")
	}
	if err != nil {
		return "", fmt.Errorf("directory %q of the context: %w", sub, err)
	}
	return path, nil
}

const tarBlock = 512

// isArchive says whether a context begins as a tar or a compressed one does.
func isArchive(head []byte) bool {
	for _, magic := range []string{"BZh", "\x1f\x8b\x08", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	if len(head) < tarBlock {
		return false
	}
	_, err := layer.NewArchiveReader(bytes.NewReader(head)).Next()
	return err == nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && !fi.IsDir()
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

func isRemote(s string) bool {
	if isHTTP(s) {
		return true
	}
	_, ok, err := dfgitutil.ParseGitRef(s)
	return ok && err == nil
}

// openNamed adds the named contexts.
func openNamed(r *Request, in *inputs) error {
	for _, value := range r.BuildContexts {
		name, src, ok := strings.Cut(value, "=")
		if !ok || name == "" || src == "" {
			return invalid("invalid context value %q, expected key=value", value)
		}
		in.opts["frontend.caps"] = "moby.buildkit.frontend.contexts+forward"
		spec, err := in.named(name, src)
		if err != nil {
			return fmt.Errorf("build context %s: %w", name, err)
		}
		in.opts["context:"+name] = spec
	}
	return nil
}

func (in *inputs) named(name, src string) (string, error) {
	if layout, ok := strings.CutPrefix(src, "oci-layout://"); ok {
		return in.layout(layout)
	}
	if strings.HasPrefix(src, "docker-image://") || isRemote(src) && !isDir(src) {
		return src, nil
	}
	if !isDir(src) {
		return "", invalid("path %q is not a directory", src)
	}
	local := name
	if name == "context" || name == "dockerfile" {
		local = "_" + name
	}
	in.local(local, src)
	return "local:" + local, nil
}

// layout adds an OCI image layout directory, "dir[:tag][@digest]".
func (in *inputs) layout(spec string) (string, error) {
	dir, dgst, pinned := strings.Cut(spec, "@")
	tag := "latest"
	if d, t, ok := strings.Cut(dir, ":"); ok {
		dir, tag = d, t
	}
	if !pinned {
		d, err := layoutTag(dir, tag)
		if err != nil {
			return "", err
		}
		dgst = string(d)
	}
	if err := oci.CheckDigest(oci.Digest(dgst)); err != nil {
		return "", invalid("oci-layout %s: %w", spec, err)
	}
	id := fmt.Sprintf("layout%d", len(in.layouts))
	in.layouts[id] = dir
	return "oci-layout://" + id + ":" + tag + "@" + dgst, nil
}

// layoutTag finds a tag in a layout's index.
func layoutTag(dir, tag string) (oci.Digest, error) {
	f, err := os.Open(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return "", fmt.Errorf("oci-layout: %w", err)
	}
	defer f.Close()
	var index oci.Index
	if err := json.NewDecoder(io.LimitReader(f, oci.MaxManifestBytes)).Decode(&index); err != nil {
		return "", fmt.Errorf("oci-layout %s: %w", f.Name(), err)
	}
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			return d.Digest, nil
		}
	}
	// A layout of one image need not name it.
	if len(index.Manifests) == 1 && tag == "latest" {
		return index.Manifests[0].Digest, nil
	}
	return "", invalid("oci-layout reference %q could not be resolved in %s", tag, dir)
}
