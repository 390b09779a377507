package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
	"den/internal/progress/display"
)

type pushOptions struct {
	all         bool
	compression string
	level       int
	force       bool
	platform    string
	quiet       bool
}

func newPush(g *globals, io streams) *cobra.Command {
	o := &pushOptions{}
	cmd := &cobra.Command{
		Use:   "push [OPTIONS] NAME[:TAG]",
		Short: "Upload an image to a registry",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPush(cmd.Context(), g, o, io, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all-tags", "a", false, "Push all tags of an image to the repository")
	f.StringVar(&o.compression, "compression", "", "Compression of layers that are not compressed yet (gzip, zstd, uncompressed)")
	f.IntVar(&o.level, "compression-level", 0, "Compression level")
	f.BoolVar(&o.force, "force-compression", false, "Compress again what was pulled")
	f.StringVar(&o.platform, "platform", "", "Push one platform's image of several")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress progress")
	return cmd
}

func runPush(ctx context.Context, g *globals, o *pushOptions, io streams, name string) error {
	platform, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	opts := image.PushOptions{Platform: platform, Format: image.Format{Compression: o.compression, Level: o.level, Force: o.force}}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		names := []string{name}
		if o.all {
			var err error
			if names, err = allTags(ctx, d, name); err != nil {
				return err
			}
		}
		if named, err := reference.ParseNormalizedNamed(name); err == nil && !o.quiet {
			fmt.Fprintf(io.out, "The push refers to repository [%s]\n", named.Name())
		}
		for _, n := range names {
			if err := o.pushOne(ctx, d, io, n, opts); err != nil {
				return err
			}
		}
		return nil
	})
}

// pushOne pushes one tag and ends with docker's line about it.
func (o *pushOptions) pushOne(ctx context.Context, d *daemon.Den, io streams, name string, opts image.PushOptions) error {
	show := display.NewTransfer(io.err, o.quiet)
	defer show.Close()
	opts.Sink = show
	desc, err := d.Images.Push(ctx, name, opts)
	if err := errors.Join(err, show.Close()); err != nil {
		return err
	}
	if o.quiet {
		fmt.Fprintln(io.out, name)
		return nil
	}
	tag := name
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
			tag = tagged.Tag()
		}
	}
	fmt.Fprintf(io.out, "%s: digest: %s size: %d\n", tag, desc.Digest, desc.Size)
	return nil
}

// allTags are the names here of a repository.
func allTags(ctx context.Context, d *daemon.Den, repository string) ([]string, error) {
	named, err := reference.ParseNormalizedNamed(repository)
	if err != nil || !reference.IsNameOnly(named) {
		return nil, &usageError{"tag can't be used with --all-tags/-a"}
	}
	list, err := d.Images.List(ctx, map[string][]string{"reference": {reference.FamiliarName(named)}})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range list {
		for _, t := range s.Tags {
			if other, err := reference.ParseNormalizedNamed(t); err == nil && other.Name() == named.Name() {
				names = append(names, t)
			}
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("an image does not exist locally with the tag: %s; den images lists what is there", named.Name())
	}
	return names, nil
}
