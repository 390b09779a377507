// Package kaniko is the door for those who come from kaniko: it translates the
// executor's options into a build, its contexts into what a build reads, and writes
// what the executor writes (digest files, log lines), so that a pipeline changes
// only the name of its image.
//
// What is promised is kaniko's spelling, formats and exit codes, as in its last
// release and in its fork of 2026. What is not kept is how it works: nothing is
// unpacked over den's own root, and steps run isolated.
package kaniko

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"

	"den/internal/build"
	"den/internal/image"
)

// Options are the executor's flags, with its names and values.
type Options struct {
	Dockerfile, Context, ContextSubPath, Bucket string
	Destinations, BuildArgs, Labels             []string
	Annotations, Secrets, Targets, IgnorePaths  []string
	CustomPlatform                              string
	TarPath, OCILayoutPath                      string
	DigestFile, NameDigestFile, TagDigestFile   string
	NoPush, NoCache, SingleSnapshot             bool
	Reproducible, SkipPushCheck, DryRun         bool
	Compression                                 string
	CompressionLevel                            int
	ImageFormat                                 string
	Git                                         Git
	Registry                                    Registry

	// Env reads a variable, LookupEnv one that may be set to nothing.
	Env       func(string) string
	LookupEnv func(string) (string, bool)
}

// unnamed is what kaniko calls an image in a tar that has no destination.
const unnamed = "docker.io/unset-repo/unset-image-name"

// invalid is a mistake on the command line.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// A Job is one build and what becomes of it.
type Job struct {
	// Target is the stage, empty for the last one.
	Target       string
	Destinations []name.Tag
	// Main says that files are written about this one. Of several targets it is
	// the first; one without a destination is built only.
	Main bool
}

// Jobs pairs targets with destinations: a destination that is meant for one of
// several is "TARGET=NAME", and the others are the first target's. It also checks
// what must not be missing.
func (o *Options) Jobs() ([]Job, error) {
	if !o.NoPush && len(o.Destinations) == 0 {
		return nil, invalid("you must provide --destination, or use --no-push")
	}
	if len(o.Destinations) == 0 && o.NameDigestFile+o.TagDigestFile != "" {
		return nil, invalid("you must provide --destination if setting --image-name-with-digest-file or --image-name-tag-with-digest-file")
	}
	targets := o.Targets
	if len(targets) == 0 {
		targets = []string{""}
	}
	jobs := make([]Job, len(targets))
	for i, t := range targets {
		jobs[i].Target, jobs[i].Main = t, i == 0
	}
	for _, d := range o.Destinations {
		at := 0
		if target, rest, ok := strings.Cut(d, "="); ok {
			if at = slices.Index(targets, target); at < 0 {
				return nil, invalid("--destination %s: there is no --target %s", d, target)
			}
			d = rest
		}
		tag, err := name.NewTag(d, name.WeakValidation)
		if err != nil {
			return nil, invalid("--destination %q: %v", d, err)
		}
		jobs[at].Destinations = append(jobs[at].Destinations, tag)
	}
	return jobs, nil
}

// Request is the build of a job. The caller adds the context, a sink and where the
// image goes.
func (o *Options) Request(j Job) (build.Request, error) {
	r := build.Request{
		Labels: o.Labels, Annotations: o.Annotations, Target: j.Target, NoCache: o.NoCache,
		BuildArgs: o.buildArgs(), Secrets: o.Secrets, LookupEnv: o.LookupEnv,
		File: o.dockerfile(),
	}
	if o.CustomPlatform != "" {
		r.Platforms = []string{o.CustomPlatform}
	}
	r.Rewriting, r.Clamp = image.Rewriting{Squash: o.SingleSnapshot, Drop: o.IgnorePaths}, o.Reproducible
	var err error
	if r.Format, err = o.format(); err != nil {
		return r, err
	}
	r.Deliver = &build.Delivery{}
	if o.DryRun {
		r.Call, r.Deliver = "outline", nil
	}
	return r, nil
}

// buildArgs are kaniko's: a name without a value is the variable's, which is empty
// where there is none. Reproducible images are as old as the epoch.
func (o *Options) buildArgs() []string {
	const epoch = "SOURCE_DATE_EPOCH"
	var args []string
	dated := false
	for _, a := range o.BuildArgs {
		if !strings.Contains(a, "=") {
			a += "=" + o.Env(a)
		}
		dated = dated || strings.HasPrefix(a, epoch+"=")
		args = append(args, a)
	}
	if o.Reproducible && !dated {
		args = append(args, epoch+"=0")
	}
	return args
}

// dockerfile is kaniko's rule: a URL; else a file here; else one in the context.
func (o *Options) dockerfile() string {
	if strings.HasPrefix(o.Dockerfile, "http://") || strings.HasPrefix(o.Dockerfile, "https://") {
		return o.Dockerfile
	}
	if fi, err := os.Stat(o.Dockerfile); err == nil && !fi.IsDir() {
		if abs, err := filepath.Abs(o.Dockerfile); err == nil {
			return abs
		}
	}
	return o.Dockerfile
}

func (o *Options) format() (image.Format, error) {
	f := image.Format{}
	switch o.Compression {
	case "", "gzip", "zstd":
		f.Compression = o.Compression
	default:
		return f, invalid("--compression %q: want gzip or zstd", o.Compression)
	}
	if o.CompressionLevel > 0 {
		f.Level = o.CompressionLevel
	}
	switch o.ImageFormat {
	case "", "oci":
	case "docker":
		f.DockerTypes = true
		if f.Compression == "zstd" {
			return f, invalid("--image-format docker has no zstd: use --image-format oci, or gzip")
		}
	default:
		return f, invalid("--image-format %q: want docker or oci", o.ImageFormat)
	}
	return f, nil
}

// Delivers says whether a job's image has to leave the store in any way.
func (o *Options) Delivers(j Job) bool {
	return !o.NoPush && len(j.Destinations) > 0 ||
		j.Main && o.TarPath+o.OCILayoutPath+o.DigestFile != "" || len(j.Destinations) > 0 && o.NameDigestFile+o.TagDigestFile != ""
}

// Destinations are those of all jobs.
func Destinations(jobs []Job) []name.Tag {
	var all []name.Tag
	for _, j := range jobs {
		all = append(all, j.Destinations...)
	}
	return all
}
