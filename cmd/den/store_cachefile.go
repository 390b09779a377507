package main

import (
	"context"
	"fmt"
	stdio "io"

	"github.com/spf13/cobra"

	"den/internal/build"
	"den/internal/daemon"
	"den/internal/layer"
)

func newStoreExport(g *globals, io streams) *cobra.Command {
	o := build.ExportOptions{}
	var output, compression string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS]",
		Short: "Write the build cache and the cache mounts to a file, for another store",
		Long: `Write the build cache (the results of steps with their layers) and the trees of
cache mounts (RUN --mount=type=cache) to a file, which den store import reads:
for machines that have no store in common. A cache mount that a build uses at the
moment is left out, and so is the private tree of a step.

Exit codes: 0 written, 125 the command line was not understood, 1 anything else.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			codec, err := cacheFileCompression(compression)
			if err != nil {
				return err
			}
			if !o.Cache && !o.Mounts {
				return &usageError{"den store export: nothing to write (--cache=false and --cache-mounts=false)"}
			}
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error {
				return runStoreExport(cmd.Context(), d, o, output, codec, io)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	f.StringArrayVar(&o.Scopes, "scope", nil, `Only records of this scope ("default" is the one without a name)`)
	f.BoolVar(&o.Cache, "cache", true, "Write the build cache")
	f.BoolVar(&o.Mounts, "cache-mounts", true, "Write the cache mounts")
	f.StringVar(&compression, "compression", "zstd", "zstd, gzip or none")
	return cmd
}

func cacheFileCompression(name string) (layer.Compression, error) {
	switch name {
	case "zstd":
		return layer.Zstd, nil
	case "gzip":
		return layer.Gzip, nil
	case "none", "uncompressed":
		return layer.Uncompressed, nil
	}
	return "", &usageError{fmt.Sprintf("den store export: compression %.40q: want zstd, gzip or none", name)}
}

func runStoreExport(ctx context.Context, d *daemon.Den, o build.ExportOptions, output string, codec layer.Compression, io streams) error {
	var x build.Exported
	err := toOutput(output, io, func(w stdio.Writer) error {
		z, err := layer.Compress(w, codec, layer.DefaultLevel)
		if err != nil {
			return err
		}
		if x, err = d.Builder().ExportCache(ctx, z, o); err != nil {
			_ = z.Close() // the file is thrown away
			return err
		}
		return z.Close()
	})
	if err != nil {
		return err
	}
	for _, line := range x.Missing {
		fmt.Fprintf(io.err, "left out  %s\n", line)
	}
	fmt.Fprintf(io.err, "%d records, %d layers and %d cache mounts are written, %d were left out\n", x.Records, x.Layers, x.CacheMounts, len(x.Missing))
	return nil
}

func newStoreImport(g *globals, io streams) *cobra.Command {
	o := build.ImportOptions{}
	var input, format string
	cmd := &cobra.Command{
		Use:   "import [OPTIONS]",
		Short: "Take over build cache and cache mounts that den store export wrote",
		Long: `Take over build cache and cache mounts that den store export wrote. Layers are
unpacked and must give the digests that they claim. That a record is true, and what
a cache mount holds, cannot be verified: name only scopes, and take cache mounts
only, from files that nobody but trusted jobs wrote. A cache mount that is here
already stays as it is.

Exit codes: 0 taken over, 1 something was not what it claimed (the rest is
taken over), 125 the command line was not understood.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.Scopes) == 0 && !o.Mounts {
				return &usageError{`den store import: say which scopes are trusted (--scope; "default" is the one without a name), or --cache-mounts`}
			}
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error {
				in, err := openInput(input, io)
				if err != nil {
					return err
				}
				defer in.Close()
				return runStoreImport(cmd.Context(), d, in, o, format, io)
			})
		},
	}
	f := cmd.Flags()
	budgetFlags(f, g)
	f.StringVarP(&input, "input", "i", "", "Read from a file, instead of STDIN")
	f.StringArrayVar(&o.Scopes, "scope", nil, `Scope whose records are trusted ("default" is the one without a name)`)
	f.BoolVar(&o.Mounts, "cache-mounts", false, "Take the cache mounts, too")
	f.StringVar(&format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func runStoreImport(ctx context.Context, d *daemon.Den, in stdio.Reader, o build.ImportOptions, format string, io streams) error {
	m, err := d.Builder().ImportCache(ctx, in, o)
	if err != nil {
		return err
	}
	if format != "" {
		err = printFormatted(io.out, format, m)
	} else {
		for _, id := range m.Kept {
			fmt.Fprintf(io.out, "kept     cache mount %.200s, which was here\n", id)
		}
		for _, line := range m.Missing {
			fmt.Fprintf(io.out, "left     %s\n", line)
		}
		for _, line := range m.Refused {
			fmt.Fprintf(io.out, "refused  %s\n", line)
		}
		fmt.Fprintf(io.out, "%d records, %d layers and %d cache mounts are here; %d were left, %d were refused\n",
			m.Records, m.Layers, m.CacheMounts, len(m.Missing), len(m.Refused))
	}
	if err == nil && len(m.Refused) > 0 {
		return &exitError{code: 1}
	}
	return err
}
