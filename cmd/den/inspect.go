package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"den/internal/daemon"
)

func newInspect(g *globals, io streams) *cobra.Command {
	var format, platform string
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] IMAGE [IMAGE...]",
		Short: "Show what is known of images",
		Args:  rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePlatform(platform)
			if err != nil {
				return err
			}
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error {
				found := []any{}
				var errs []error
				for _, name := range args {
					x, err := d.Images.Inspect(cmd.Context(), name, p)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					found = append(found, x)
				}
				if format == "" || format == "json" {
					errs = append(errs, printFormatted(io.out, format, found))
					return errors.Join(errs...)
				}
				for _, x := range found {
					errs = append(errs, printFormatted(io.out, format, x))
				}
				return errors.Join(errs...)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&format, "format", "f", "", "Format output with a Go template, or json")
	f.StringVar(&platform, "platform", "", "Inspect one platform's image of several")
	f.String("type", "image", "Type of object; den inspects images")
	hide(f, "type")
	return cmd
}

type historyOptions struct {
	format  string
	human   bool
	noTrunc bool
	quiet   bool
}

func newHistory(g *globals, io streams) *cobra.Command {
	o := &historyOptions{}
	cmd := &cobra.Command{
		Use:   "history [OPTIONS] IMAGE",
		Short: "Show the history of an image",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error {
				list, err := d.Images.History(cmd.Context(), args[0], nil)
				if err != nil {
					return err
				}
				rows := make([]map[string]any, len(list))
				for i, h := range list {
					rows[i] = o.row(h)
				}
				t := table{
					columns: []column{{"ID", "IMAGE"}, {"CreatedSince", "CREATED"}, {"CreatedBy", "CREATED BY"}, {"Size", "SIZE"}, {"Comment", "COMMENT"}},
					headers: map[string]string{"CreatedAt": "CREATED AT"}, format: o.format, quiet: o.quiet, id: "ID",
				}
				return t.print(io.out, rows)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	f.BoolVarP(&o.human, "human", "H", true, "Print sizes and dates in human readable format")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

// maxCreatedBy is where docker cuts an instruction.
const maxCreatedBy = 45

func truncated(s string, noTrunc bool) string {
	runes := []rune(s)
	if noTrunc || len(runes) <= maxCreatedBy {
		return s
	}
	return fmt.Sprintf("%s…", string(runes[:maxCreatedBy-1]))
}
