package main

import (
	"github.com/spf13/cobra"

	"den/internal/daemon"
)

func newTag(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Short: "Create a tag that refers to an image",
		Args:  exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				return d.Images.Tag(cmd.Context(), args[0], args[1])
			})
		},
	}
}
