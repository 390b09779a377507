package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"den/internal/daemon"
)

func newStoreLocks(g *globals, io streams) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "locks [OPTIONS]",
		Short: "Show who holds what in the store",
		Long: `Show the kernel locks on the store: leases on blobs and layers, running
containers, work under way. PID 0 is a process of another container, of which
the kernel shows no more than that it holds the lock.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				locks, err := d.Store.Locks(cmd.Context())
				if err != nil {
					return err
				}
				rows := make([]map[string]any, len(locks))
				for i, l := range locks {
					mode := "shared"
					if l.Exclusive {
						mode = "exclusive"
					}
					state := "held"
					if l.Waiting {
						state = "waiting"
					}
					rows[i] = map[string]any{"Path": l.Path, "Mode": mode, "State": state, "PID": strconv.Itoa(l.PID), "Command": l.Command}
				}
				t := table{format: format, columns: []column{
					{"Path", "PATH"}, {"Mode", "MODE"}, {"State", "STATE"}, {"PID", "PID"}, {"Command", "COMMAND"},
				}}
				return t.print(io.out, rows)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output with a Go template, or json")
	return cmd
}
