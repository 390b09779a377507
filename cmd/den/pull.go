package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/platforms"
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
	f.BoolVarP(&o.allTags, "all-tags", "a", false, "Refused: name each tag")
	hide(f, "all-tags")
	f.BoolVar(&o.all, "all-platforms", false, "Download the image for every platform it has")
	f.StringVar(&o.platform, "platform", "", "Set platform if the image has several")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print the image's name only")
	f.Bool("disable-content-trust", true, "Accepted: signatures are not checked")
	hide(f, "disable-content-trust")
	return cmd
}

func runPull(ctx context.Context, g *globals, o *pullOptions, io streams, name string) error {
	if o.allTags {
		return &usageError{"den pulls one tag at a time; name each"}
	}
	platform, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		show := display.NewTransfer(io.err, o.quiet)
		defer show.Close()
		pulled, err := d.Images.Pull(ctx, name, image.PullOptions{Platform: platform, AllPlatforms: o.all, Sink: show})
		if err := errors.Join(err, show.Close()); err != nil {
			return err
		}
		if !o.quiet {
			fmt.Fprintf(io.out, "Digest: %s\nStatus: %s\n", pulled.Digest, pulled.Status())
		}
		fmt.Fprintln(io.out, pulled.Name)
		return nil
	})
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
