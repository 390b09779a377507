package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion(io streams) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version [OPTIONS]",
		Short: "Show the version",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			b := version()
			if format != "" {
				one := map[string]string{
					"Version": b.Version, "GitCommit": b.GitCommit, "GoVersion": b.GoVersion,
					"BuildTime": b.BuiltAt, "Os": runtime.GOOS, "Arch": runtime.GOARCH,
				}
				// There is no server apart, but scripts ask docker's for its version.
				return printFormatted(io.out, format, map[string]any{"Client": one, "Server": one})
			}
			_, err := fmt.Fprintf(io.out, "Client: den\n Version:    %s\n Go version: %s\n Git commit: %s\n Built:      %s\n OS/Arch:    %s/%s\n",
				b.Version, b.GoVersion, b.GitCommit, b.BuiltAt, runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output with a Go template, or json")
	return cmd
}
