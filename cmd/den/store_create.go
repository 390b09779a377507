package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/daemon"
)

type storeCreateOptions struct {
	backing string
	size    string
}

func newStoreCreate(g *globals, io streams) *cobra.Command {
	o := &storeCreateOptions{}
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [DIR]",
		Short: "Make a store, or more room in one",
		Long: `Make a store in DIR (default: where den would look for it). With --backing loop it
lies in a sparse ext4 image on a loop device, for containers whose own file system is
an overlay: the image takes what is in it, grows up to --size and shrinks when the store is
collected. On a store that has one, a larger --size makes it larger.`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				g.store = args[0]
			}
			return runStoreCreate(cmd.Context(), g, o, io)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.backing, "backing", "dir", "What the store lies on: dir (the directory's file system), loop (an image of its own)")
	f.StringVar(&o.size, "size", "", "How large the image may grow")
	return cmd
}

func runStoreCreate(ctx context.Context, g *globals, o *storeCreateOptions, io streams) error {
	switch o.backing {
	case "dir":
		if o.size != "" {
			return &usageError{"den store create: --size is of --backing loop; a directory has the size of its file system (see --max-size)"}
		}
		return withNames(ctx, g, io, func(d *daemon.Den) error {
			_, err := fmt.Fprintln(io.out, d.Store.Root())
			return err
		})
	case "loop":
		if o.size == "" {
			return &usageError{"den store create: --backing loop needs --size, to which the image may grow"}
		}
	default:
		return &usageError{fmt.Sprintf("den store create: --backing %q: want dir or loop", o.backing)}
	}
	size, err := byteSize("size", o.size)
	if err != nil {
		return err
	}
	do, err := g.daemonOptions(io)
	if err != nil {
		return err
	}
	dir, err := daemon.CreateStore(ctx, do, size)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(io.out, dir)
	return err
}
