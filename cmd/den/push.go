package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
	"den/internal/progress/display"
)

type pushOptions struct {
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
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		show := display.NewTransfer(io.err, o.quiet)
		desc, err := d.Images.Push(ctx, name, image.PushOptions{
			Platform: platform, Sink: show,
			Format: image.Format{Compression: o.compression, Level: o.level, Force: o.force},
		})
		show.Close()
		if err != nil {
			return err
		}
		if o.quiet {
			fmt.Fprintln(io.out, name)
			return nil
		}
		fmt.Fprintf(io.out, "%s: digest: %s size: %d\n", name, desc.Digest, desc.Size)
		return nil
	})
}
