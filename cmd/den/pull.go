package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress/display"
)

type pullOptions struct {
	all      bool
	allTags  bool
	platform string
	quiet    bool
}

func newPull(g *globals, io streams) *cobra.Command {
	o := &pullOptions{}
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short: "Download an image from a registry",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPull(cmd.Context(), g, o, io, args[0])
		},
	}
	f := cmd.Flags()
	budgetFlags(f, g)
	f.BoolVarP(&o.allTags, "all-tags", "a", false, "Download all tags of the repository")
	f.BoolVar(&o.all, "all-platforms", false, "Download the image for every platform it has")
	f.StringVar(&o.platform, "platform", "", "Set platform if the image has several")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image's name only")
	f.Bool("disable-content-trust", true, "Accepted: signatures are not checked")
	hide(f, "disable-content-trust")
	return cmd
}

func runPull(ctx context.Context, g *globals, o *pullOptions, io streams, name string) error {
	platform, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	opts := image.PullOptions{Platform: platform, AllPlatforms: o.all}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		if o.allTags {
			return o.pullAll(ctx, d, io, name, opts)
		}
		pulled, err := o.pullOne(ctx, d, io, name, opts)
		if err != nil {
			return err
		}
		if !o.quiet {
			fmt.Fprintf(io.out, "Status: %s\n", pulled.Status())
		}
		fmt.Fprintln(io.out, pulled.Name)
		return nil
	})
}

// pullOne pulls one tag and says what it stands for.
func (o *pullOptions) pullOne(ctx context.Context, d *daemon.Den, io streams, name string, opts image.PullOptions) (*image.Pulled, error) {
	show := display.NewTransfer(io.err, o.quiet)
	defer show.Close()
	opts.Sink = show
	pulled, err := d.Images.Pull(ctx, name, opts)
	if err := errors.Join(err, show.Close()); err != nil {
		return nil, err
	}
	if !o.quiet {
		fmt.Fprintf(io.out, "Digest: %s\n", pulled.Digest)
	}
	return pulled, nil
}

// pullAll pulls every tag of a repository, as docker pull -a does: it ends at
// the first that cannot be had.
func (o *pullOptions) pullAll(ctx context.Context, d *daemon.Den, io streams, repository string, opts image.PullOptions) error {
	named, err := reference.ParseNormalizedNamed(repository)
	if err != nil || !reference.IsNameOnly(named) {
		return &usageError{"tag can't be used with --all-tags/-a"}
	}
	tags, err := d.Images.Tags(ctx, named.Name())
	if err != nil {
		return err
	}
	if len(tags) == 0 {
		return fmt.Errorf("the registry has no tag of %s", reference.FamiliarName(named))
	}
	status := "Image is up to date for "
	for _, tag := range tags {
		name := named.Name() + ":" + tag
		if !o.quiet {
			fmt.Fprintf(io.out, "%s: Pulling from %s\n", tag, reference.Path(named))
		}
		pulled, err := o.pullOne(ctx, d, io, name, opts)
		if err != nil {
			return err
		}
		if !pulled.UpToDate {
			status = "Downloaded newer image for "
		}
	}
	if !o.quiet {
		fmt.Fprintf(io.out, "Status: %s%s\n", status, reference.FamiliarName(named))
	}
	fmt.Fprintln(io.out, named.Name())
	return nil
}

// parsePlatform reads --platform or $DOCKER_DEFAULT_PLATFORM; nil means the machine's own.
func parsePlatform(s string) (*oci.Platform, error) {
	if s == "" {
		s = os.Getenv("DOCKER_DEFAULT_PLATFORM")
	}
	if s == "" {
		return nil, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("platform %q: %v", s, err)}
	}
	return &p, nil
}
