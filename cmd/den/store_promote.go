package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/build"
	"den/internal/daemon"
)

func newStorePromote(g *globals, io streams) *cobra.Command {
	var o build.PromoteOptions
	var format string
	cmd := &cobra.Command{
		Use:   "promote --from STORE [OPTIONS]",
		Short: "Take results over from a store that is not trusted",
		Long: `Take results over from a store that is not trusted, for the jobs that read this
one. Blobs are hashed again, layers are unpacked again from blobs or from their
trees' tar, and must give the digests that they claim. Build-cache records are
taken only from the scopes that --scope names: that a record is true cannot be
verified, so name only scopes that nobody but trusted jobs wrote in that store.
Best nobody writes to it meanwhile.

Exit codes: 0 taken over, 1 something was not what it claimed (the rest is
taken over), 125 the command line was not understood.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.From == "" {
				return &usageError{"den store promote: say what to take from (--from STORE)"}
			}
			if len(o.Scopes) == 0 && !o.Blobs {
				return &usageError{`den store promote: say which scopes are trusted (--scope; "default" is the one without a name), or --blobs`}
			}
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error { return runPromote(cmd.Context(), d, o, format, io) })
		},
	}
	f := cmd.Flags()
	budgetFlags(f, g)
	f.StringVar(&o.From, "from", "", "Directory of the store to take from")
	f.StringArrayVar(&o.Scopes, "scope", nil, `Scope whose records are trusted ("default" is the one without a name)`)
	f.BoolVar(&o.Blobs, "blobs", false, "Take every blob, too: it saves a later pull the download")
	f.StringVar(&format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func runPromote(ctx context.Context, d *daemon.Den, o build.PromoteOptions, format string, io streams) error {
	p, err := d.Builder().Promote(ctx, o)
	if err != nil {
		return err
	}
	if format != "" {
		err = printFormatted(io.out, format, p)
	} else {
		for _, line := range p.Missing {
			fmt.Fprintf(io.out, "left     %s\n", line)
		}
		for _, line := range p.Refused {
			fmt.Fprintf(io.out, "refused  %s\n", line)
		}
		fmt.Fprintf(io.out, "%d records, %d layers and %d blobs are here; %d were left for what they lack, %d were refused\n",
			p.Records, p.Layers, p.Blobs, len(p.Missing), len(p.Refused))
	}
	if err == nil && len(p.Refused) > 0 {
		return &exitError{code: 1}
	}
	return err
}
