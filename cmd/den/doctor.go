package main

import (
	"encoding/json"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"den/internal/daemon"
	"den/internal/doctor"
)

type doctorOptions struct {
	format     string
	registries []string
}

func newDoctor(g *globals, io streams) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Say what den may do here, what it chose, and how to get more",
		Long: `Say what the container around den allows, which rung of isolation, storage driver
and network den chose and why not a better one, whether the store, limits,
registries and clock are fit, and which line of configuration lifts a shortfall.

Of registries those are asked that the configuration names as mirrors or insecure,
and those of --registry; without any, none is. Nothing is changed.

Exit code 1 says that den cannot work at all, 125 that the flags are wrong.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.format != "" && o.format != "json" {
				return &usageError{"den doctor: --format takes json"}
			}
			options, err := g.daemonOptions(io)
			if err != nil {
				return err
			}
			r, err := daemon.Examine(cmd.Context(), options, o.registries)
			if err != nil {
				return err
			}
			if err := o.print(io, r); err != nil {
				return err
			}
			if r.Verdict == doctor.Unfit {
				return &exitError{1}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.format, "format", "f", "", "json for programs")
	f.StringSliceVar(&o.registries, "registry", nil, "Registry to ask besides those of the configuration")
	return cmd
}

func (o doctorOptions) print(io streams, r doctor.Report) error {
	if o.format == "json" {
		enc := json.NewEncoder(io.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(r)
	}
	return r.Print(io.out, styleOf(io.out.File))
}

// styleOf is plain but on a terminal; NO_COLOR is https://no-color.org.
func styleOf(out *os.File) doctor.Style {
	if !term.IsTerminal(int(out.Fd())) {
		return doctor.Style{}
	}
	s := doctor.Style{Colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if width, _, err := term.GetSize(int(out.Fd())); err == nil {
		s.Width = width
	}
	return s
}
