package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/store"
)

type storeVerifyOptions struct {
	deep   bool
	repair bool
	format string
}

func newStoreVerify(g *globals, io streams) *cobra.Command {
	o := &storeVerifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify [OPTIONS]",
		Short: "Check the store beside its users",
		Long: `Check that metadata parses, that names match what they name and that objects are
whole. --deep reads every byte. --repair removes what is damaged, so that it is
fetched or built again; references and containers it only reports.

Exit codes: 0 nothing is damaged (or --repair removed it), 1 something is,
125 the command line was not understood.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runStoreVerify(cmd.Context(), g, o, io) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.deep, "deep", false, "Hash every blob and every layer's tree")
	f.BoolVar(&o.repair, "repair", false, "Remove what is damaged")
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func runStoreVerify(ctx context.Context, g *globals, o *storeVerifyOptions, io streams) error {
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		r, err := d.Store.Verify(ctx, o.deep)
		if err != nil {
			return err
		}
		out := struct {
			store.Report
			store.Repair
			Clean bool
		}{Report: r, Clean: r.Clean()}
		if o.repair {
			if out.Repair, err = d.Store.Repair(ctx, r); err != nil {
				return err
			}
			out.Clean = len(out.Kept) == 0
		}
		if o.format != "" {
			err = printFormatted(io.out, o.format, out)
		} else {
			printReport(io, r, out.Repair)
		}
		if err == nil && !out.Clean {
			return &exitError{code: 1}
		}
		return err
	})
}

func printReport(io streams, r store.Report, done store.Repair) {
	for _, p := range r.Problems {
		fmt.Fprintf(io.out, "damaged   %s: %s\n", p.Path, p.What)
	}
	for _, what := range r.Dangling {
		fmt.Fprintf(io.out, "absent    %s\n", what)
	}
	for _, path := range r.Leftovers {
		fmt.Fprintf(io.out, "leftover  %s\n", path)
	}
	for _, path := range done.Removed {
		fmt.Fprintf(io.out, "removed   %s\n", path)
	}
	for _, p := range done.Kept {
		fmt.Fprintf(io.out, "kept      %s: it is in use, or not for den to remove\n", p.Path)
	}
	fmt.Fprintf(io.out, "%d checked, %d damaged, %d absent (a miss each), %d left over (den store gc removes those of the dead)\n",
		r.Objects, len(r.Problems), len(r.Dangling), len(r.Leftovers))
}
