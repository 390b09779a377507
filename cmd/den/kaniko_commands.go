package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	stdio "io"
	"os"

	"github.com/spf13/cobra"

	"den/internal/build/dockerfile"
	"den/internal/daemon"
	"den/internal/image"
	"den/internal/kaniko"
	"den/internal/progress"
)

func newKanikoVersion(io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version number",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(io.out, "Kaniko version : ", "den-"+version().Version)
			return err
		},
	}
}

func newKanikoPush(g *globals, io streams) *cobra.Command {
	o := &kanikoOptions{}
	cmd := &cobra.Command{
		Use:   "push PATH",
		Short: "Push an image that is there to registries",
		Long: `Push an image to one or more registries. PATH is a tarball as docker save or
--tar-path write it, or the directory of an OCI layout.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return kanikoFailed(cmd.Context(), io, runKanikoPush(cmd.Context(), g, o, io, args[0]))
		},
	}
	f := cmd.Flags()
	o.Env, o.LookupEnv = os.Getenv, os.LookupEnv
	f.VarP(listFlag{&o.Destinations}, "destination", "d", "Name that the image is pushed to (repeatable)")
	f.BoolVar(&o.SkipPushCheck, "skip-push-permission-check", false, "Do not find out first whether the push will be let in")
	f.StringVar(&o.dir, "kaniko-dir", "/kaniko", "Directory with .docker/config.json and ssl/certs (also $KANIKO_DIR)")
	o.bindRegistry(f)
	o.bindLog(f)
	o.ignored.toggles(f, "force")
	o.ignored.flags(f, "image-download-retry")
	return cmd
}

func runKanikoPush(ctx context.Context, g *globals, o *kanikoOptions, io streams, path string) error {
	if err := o.complete(); err != nil {
		return err
	}
	o.NoPush = false
	log, err := kaniko.NewLog(io.err, o.log)
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	if len(o.Destinations) == 0 {
		return &usageError{"at least one --destination is required"}
	}
	jobs, err := o.Jobs()
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	if note := o.ignored.note(kanikoPage); note != "" {
		g.notes = append(g.notes, note)
	}
	do, _, err := o.daemonOptions(g, io, log, jobs)
	if err != nil {
		return err
	}
	return g.named(ctx, do, func(d *daemon.Den) (err error) {
		if err := o.checkPush(ctx, d, jobs); err != nil {
			return err
		}
		img, err := openImage(ctx, d.Images, path)
		if err != nil {
			return fmt.Errorf("loading image: %w", err)
		}
		defer func() { err = errors.Join(err, img.Close()) }()
		deliver := &kaniko.Deliverer{Options: &o.Options, Images: d.Images, Log: log, Sink: kaniko.NewProgress(log, io.out, io.err)}
		if err := deliver.Deliver(ctx, jobs[0], img.Blobs); err != nil {
			return fmt.Errorf("pushing image: %w", err)
		}
		return nil
	})
}

// openImage reads the one image of an archive, or of an OCI layout's directory.
func openImage(ctx context.Context, images *image.Images, path string) (*image.Archived, error) {
	r, err := openLayout(path)
	if err != nil {
		return nil, err
	}
	found, err := images.OpenArchive(ctx, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, other := range found[1:] {
		err = errors.Join(err, other.Close())
		if other.Target.Digest != found[0].Target.Digest {
			err = errors.Join(err, fmt.Errorf("%s holds several images, want one", path))
		}
	}
	if err != nil {
		return nil, errors.Join(err, found[0].Close())
	}
	return found[0], nil
}

// openLayout opens a file, or a directory as the tar that it would be.
func openLayout(path string) (stdio.ReadCloser, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return os.Open(path)
	}
	pr, pw := stdio.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		err := w.AddFS(os.DirFS(path))
		pw.CloseWithError(errors.Join(err, w.Close()))
	}()
	return pr, nil
}

// warmerOptions are the flags of kaniko's warmer.
type warmerOptions struct {
	kanikoOptions
	images []string
}

func newWarmer(g *globals, io streams, use string) *cobra.Command {
	o := &warmerOptions{}
	cmd := &cobra.Command{
		Use:   use + " [flags]",
		Short: "Pull base images into the store, with the flags of kaniko's warmer",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return kanikoFailed(cmd.Context(), io, runWarmer(cmd.Context(), g, o, io))
		},
	}
	f := cmd.Flags()
	o.Env, o.LookupEnv = os.Getenv, os.LookupEnv
	f.VarP(listFlag{&o.images}, "image", "i", "Image to pull (repeatable)")
	f.StringVarP(&o.Dockerfile, "dockerfile", "d", "", "Dockerfile whose base images are pulled")
	f.Var(listFlag{&o.BuildArgs}, "build-arg", "ARG that a base image's name depends on (repeatable)")
	f.StringVar(&o.CustomPlatform, "customPlatform", "", "Platform to pull for")
	f.StringVar(&o.CustomPlatform, "custom-platform", "", "Platform to pull for")
	f.StringVar(&o.dir, "kaniko-dir", "/kaniko", "Directory with .docker/config.json and ssl/certs (also $KANIKO_DIR)")
	o.bindRegistry(f)
	o.bindLog(f)
	o.ignored.flags(f, "cache-dir,c", "cache-ttl", "image-download-retry")
	o.ignored.toggles(f, "force,f")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return kanikoFailed(cmd.Context(), io, flagError(cmd, err))
	})
	return cmd
}

func runWarmer(ctx context.Context, g *globals, o *warmerOptions, io streams) error {
	if err := o.complete(); err != nil {
		return err
	}
	log, err := kaniko.NewLog(io.err, o.log)
	if err != nil {
		return &usageError{progress.Plain(err.Error())}
	}
	names := o.images
	if o.Dockerfile != "" {
		bases, err := basesOf(o.Dockerfile, o.BuildArgs)
		if err != nil {
			return fmt.Errorf("error validating dockerfile path: %w", err)
		}
		names = append(names, bases...)
	}
	if len(o.images) == 0 && o.Dockerfile == "" {
		return &usageError{"you must select at least one image to cache or a dockerfilepath to parse"}
	}
	platform, err := parsePlatform(o.CustomPlatform)
	if err != nil {
		return err
	}
	if note := o.ignored.note(kanikoPage); note != "" {
		g.notes = append(g.notes, note)
	}
	do, _, err := o.daemonOptions(g, io, log, nil)
	if err != nil {
		return err
	}
	return g.named(ctx, do, func(d *daemon.Den) error {
		show := kaniko.NewProgress(log, io.out, io.err)
		for _, name := range names {
			pulled, err := d.Images.Pull(ctx, name, image.PullOptions{Platform: platform, Sink: show})
			if err != nil {
				return fmt.Errorf("failed warming cache: %w", err)
			}
			log.Infof("Image %s is in the store: %s", name, pulled.Digest)
		}
		return nil
	})
}

// basesOf reads the names of a Dockerfile's base images.
func basesOf(path string, args []string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return dockerfile.Bases(f, args)
}
