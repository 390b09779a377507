package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
)

func newRmi(g *globals, io streams) *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use:   "rmi [OPTIONS] IMAGE [IMAGE...]",
		Short: "Remove images",
		Args:  rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				var errs []error
				for _, name := range args {
					removed, err := d.Images.Remove(cmd.Context(), name, image.RemoveOptions{Force: force})
					for _, r := range removed {
						fmt.Fprintln(io.out, r)
					}
					errs = append(errs, err)
				}
				if !noPrune {
					if _, err := d.Store.CollectGarbage(cmd.Context()); err != nil {
						fmt.Fprintf(io.err, "den: the layers are still there: %v\n", err)
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "Leave the layers for the next prune")
	return cmd
}
