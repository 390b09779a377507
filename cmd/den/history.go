package main

import (
	stdio "io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"den/internal/daemon"
	"den/internal/image"
)

type historyOptions struct {
	format   string
	human    bool
	noTrunc  bool
	platform string
	quiet    bool
}

func newHistory(g *globals, io streams) *cobra.Command {
	o := &historyOptions{}
	cmd := &cobra.Command{
		Use:   "history [OPTIONS] IMAGE",
		Short: "Show the history of an image",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePlatform(o.platform)
			if err != nil {
				return err
			}
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				list, err := d.Images.History(cmd.Context(), args[0], p)
				if err != nil {
					return err
				}
				return o.print(io.out, list)
			})
		},
	}
	o.bind(cmd.Flags())
	cmd.Flags().StringVar(&o.platform, "platform", "", "Show the history of one platform's image of several")
	return cmd
}

// bind binds what den's command and docker's have in common.
func (o *historyOptions) bind(f *pflag.FlagSet) {
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	f.BoolVarP(&o.human, "human", "H", true, "Print sizes and dates in human readable format")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Only show image IDs")
}

func (o *historyOptions) print(w stdio.Writer, list []image.HistoryRow) error {
	rows := make([]map[string]any, len(list))
	for i, h := range list {
		rows[i] = o.row(h)
	}
	t := table{
		columns: []column{{"ID", "IMAGE"}, {"CreatedSince", "CREATED"}, {"CreatedBy", "CREATED BY"}, {"Size", "SIZE"}, {"Comment", "COMMENT"}},
		headers: map[string]string{"CreatedAt": "CREATED AT"}, format: o.format, quiet: o.quiet, id: "ID",
	}
	return t.print(w, rows)
}

func (o *historyOptions) row(h image.HistoryRow) map[string]any {
	created := time.Unix(h.Created, 0)
	since, size := ago(created), units.HumanSizeWithPrecision(float64(h.Size), 3)
	if !o.human {
		since, size = created.Format(time.RFC3339), strconv.FormatInt(h.Size, 10)
	}
	if h.Created == 0 {
		since = "N/A"
	}
	id := h.ID
	if !strings.HasPrefix(id, "<") {
		id = shortDigest(id, o.noTrunc)
	}
	return map[string]any{
		"ID": id, "CreatedSince": since, "CreatedAt": created.Format(time.RFC3339),
		"CreatedBy": truncated(strings.ReplaceAll(h.CreatedBy, "\t", " "), o.noTrunc), "Size": size, "Comment": h.Comment,
	}
}

// maxCreatedBy is where docker cuts an instruction.
const maxCreatedBy = 45

func truncated(s string, noTrunc bool) string {
	if noTrunc {
		return s
	}
	return ellipsis(s, maxCreatedBy)
}
