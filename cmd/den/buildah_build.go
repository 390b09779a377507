package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/build"
	"den/internal/build/dockerfile"
	"den/internal/buildah"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/progress/display"
)

func runBud(ctx context.Context, g *globals, o *budOptions, io streams, args []string) error {
	at := "."
	if len(args) == 1 {
		at = args[0]
	}
	req, err := o.request(at, io, g)
	if err != nil {
		return err
	}
	do, err := o.remote.options(g, io, "")
	if err != nil {
		return err
	}
	return g.entered(ctx, do, func(d *daemon.Den) error {
		// Not before: a plain user's process starts again when it enters.
		clean, err := o.setFile(&req, at)
		defer clean()
		if err != nil {
			return err
		}
		out := io.err
		if o.logFile != "" {
			if out, err = os.Create(o.logFile); err != nil {
				return err
			}
			defer out.Close()
		}
		mode := ""
		if o.quiet {
			mode = quietProgress
		} else if o.logFile != "" {
			mode = "plain"
		}
		show, err := display.NewBuild(out, mode, rungHeading(ctx, d))
		if err != nil {
			return err
		}
		req.Sink = show
		if o.manifest != "" {
			o.intoList(ctx, d, &req)
		}
		res, err := d.Builder().Solve(ctx, req)
		if err := errors.Join(err, show.Close()); err != nil {
			return explain(io.err, err)
		}
		return o.answer(io, res)
	})
}

// intoList adds the images to the list that --manifest names, and keeps them under
// their own names.
func (o *budOptions) intoList(ctx context.Context, d *daemon.Den, req *build.Request) {
	list := buildah.Name(o.manifest)
	req.Load = len(req.Tags) > 0
	req.Deliver = &build.Delivery{To: func(ctx context.Context, b *image.Blobs) error {
		if err := d.Images.CreateList(ctx, list); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		return d.Images.AddToList(ctx, list, b.Images)
	}}
}

// answer prints and writes the ID as buildah does.
func (o *budOptions) answer(io streams, res *build.Response) error {
	if res.ImageID == "" {
		return nil
	}
	id := buildah.BareID(string(res.ImageID))
	if o.idFileRaw != "" {
		if err := os.WriteFile(o.idFileRaw, []byte(id), 0o644); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(io.out, id)
	return err
}

// request is the build as it was typed, but for its file.
func (o *budOptions) request(at string, io streams, g *globals) (build.Request, error) {
	r := build.Request{
		Context: at, Stdin: io.in, Stdout: io.out, BuildContexts: o.buildContexts, Labels: o.labels, Annotations: o.annotations, Target: o.target,
		NoCache: o.noCache, AddHosts: o.addHosts, ShmSize: o.shmSize, Ulimits: o.ulimits, Secrets: o.secrets, SSH: o.ssh, Outputs: o.outputs,
		IIDFile: o.iidFile, MetadataFile: o.metadataFile, LookupEnv: o.lookup(g), BuildArgs: o.buildArgs,
		Rewriting: image.Rewriting{Squash: o.squash, All: o.squash}, Platforms: o.platformList(),
	}
	for _, t := range o.tags {
		r.Tags = append(r.Tags, buildah.Name(t))
	}
	steps := []func(*build.Request) error{o.setFormat, o.setNetwork, o.setPull, o.setTimes, o.setArgs, o.setSecurity}
	for _, step := range steps {
		if err := step(&r); err != nil {
			return r, err
		}
	}
	if o.edits.Any() {
		lookup := r.LookupEnv
		r.EditConfig = func(raw []byte) ([]byte, error) { return o.edits.Apply(raw, lookup) }
	}
	return r, nil
}

func (o *budOptions) setFormat(r *build.Request) error {
	r.Format = image.Format{Compression: o.compression, Level: o.level}
	switch o.format {
	case "", "oci":
	case "docker":
		r.Format.DockerTypes = true
	default:
		return &usageError{fmt.Sprintf("format %q: want oci or docker", o.format)}
	}
	return nil
}

func (o *budOptions) setNetwork(r *build.Request) (err error) {
	r.Network, err = buildah.Network(o.network)
	return err
}

func (o *budOptions) setPull(r *build.Request) error {
	switch o.pullPolicy {
	case "always", "true", "newer", "ifnewer":
		r.Pull = true
	case "missing", "ifmissing", "false", "":
	case "never":
		o.ignored.names = append(o.ignored.names, "pull=never")
	default:
		return &usageError{fmt.Sprintf("pull policy %q: want always, missing, newer or never", o.pullPolicy)}
	}
	return nil
}

// setTimes takes --timestamp for the image and its files, --source-date-epoch for
// the image, and --rewrite-timestamp for the files besides.
func (o *budOptions) setTimes(r *build.Request) error {
	if o.timestamp != "" && o.epoch != "" {
		return &usageError{"--timestamp and --source-date-epoch are mutually exclusive"}
	}
	if at := o.timestamp + o.epoch; at != "" {
		r.BuildArgs = append(r.BuildArgs, "SOURCE_DATE_EPOCH="+at)
	}
	r.Clamp = o.rewrite || o.timestamp != ""
	return nil
}

func (o *budOptions) setArgs(r *build.Request) error {
	var fromFiles []string
	for _, name := range o.argFiles {
		lines, err := buildah.ReadLines(name)
		if err != nil {
			return err
		}
		fromFiles = append(fromFiles, lines...)
	}
	r.BuildArgs = append(fromFiles, r.BuildArgs...)
	return nil
}

// setSecurity takes options that ask for no more than den does anyway.
func (o *budOptions) setSecurity(*build.Request) error {
	switch s := o.securityOpts; {
	case s == "":
	case strings.HasPrefix(s, "label"), s == "apparmor=unconfined", s == "seccomp=unconfined":
		o.ignored.names = append(o.ignored.names, "security-opt="+s)
	default:
		return &usageError{fmt.Sprintf("--security-opt %s: steps run below Docker's default profile, and no other can be asked for", s)}
	}
	return nil
}

// lookup is den's environment, without the proxies where they are not wanted.
func (o *budOptions) lookup(g *globals) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if !o.proxy && strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			return "", false
		}
		return g.lookupEnv(name)
	}
}

// platformList is --platform, or each --arch with the --os and --variant.
func (o *budOptions) platformList() []string {
	out := o.platforms
	first := func(list []string) string {
		if len(list) > 0 {
			return list[0]
		}
		return ""
	}
	for _, arch := range o.arch {
		out = append(out, platformOf("", first(o.goos), arch, first(o.variant)))
	}
	return out
}

// setFile finds the Dockerfile, another list of what to ignore, and the image in the
// first FROM's place. The function removes what was put aside.
func (o *budOptions) setFile(r *build.Request, at string) (clean func(), err error) {
	clean = func() {}
	if len(o.files) > 1 {
		return clean, &usageError{"several files: den builds by one; put them together, or use stages"}
	}
	file := strings.Join(o.files, "")
	if fi, err := os.Stat(at); err == nil && fi.IsDir() && file == "" {
		file = buildah.FindFile(at)
	} else if err == nil && !fi.IsDir() && len(o.files) == 0 { // buildah bud Containerfile
		r.Context, file = filepath.Dir(at), at
	}
	r.File = file
	ignore := o.ignoreFile
	if ignore == "" {
		ignore = buildah.FindIgnore(r.Context)
	}
	onDisk := file != "" && file != "-" && !strings.Contains(file, "://")
	if ignore != "" && onDisk {
		dir, err := os.MkdirTemp("", "den-bud-")
		if err != nil {
			return clean, err
		}
		clean = func() { os.RemoveAll(dir) }
		if r.File, err = buildah.Beside(dir, nearer(file, r.Context), ignore); err != nil {
			return clean, err
		}
	} else if o.ignoreFile != "" {
		return clean, &usageError{"--ignorefile needs a Containerfile on disk"}
	}
	if o.from != "" {
		if !onDisk {
			return clean, &usageError{"--from needs a Containerfile on disk"}
		}
		base, err := firstBase(nearer(file, r.Context), r.BuildArgs)
		if err != nil {
			return clean, err
		}
		r.BuildContexts = append(r.BuildContexts, base+"=docker-image://"+buildah.Name(strings.TrimPrefix(o.from, "docker://")))
	}
	return clean, nil
}

// nearer is a file here, else in the context.
func nearer(file, context string) string {
	if _, err := os.Stat(file); err != nil && !filepath.IsAbs(file) {
		return filepath.Join(context, file)
	}
	return file
}

// firstBase is the name of the image that a Dockerfile begins with.
func firstBase(path string, args []string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	bases, err := dockerfile.Bases(f, args)
	if err == nil && len(bases) == 0 {
		err = errors.New("--from: no stage begins with an image")
	}
	if err != nil {
		return "", err
	}
	return bases[0], nil
}
