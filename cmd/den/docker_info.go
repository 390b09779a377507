package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/moby/moby/api/types/system"
)

func (d *docker) newInfo() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info [OPTIONS]", Short: "Show what the daemon is", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var i system.Info
			err := d.call(cmd.Context(), "GET", "/info", nil, nil, &i)
			if format != "" {
				if err != nil {
					return err
				}
				return printFormatted(d.io.out, format, i)
			}
			fmt.Fprintf(d.io.out, "Client:\n Version:    %s\n Context:    default\n Debug Mode: %t\n\nServer:\n", releaseVersion, d.debug)
			if err != nil {
				return err
			}
			d.printInfo(&i)
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output with a Go template, or json")
	return cmd
}

func (d *docker) printInfo(i *system.Info) {
	line := func(name string, value any) { fmt.Fprintf(d.io.out, " %s: %v\n", name, value) }
	line("Containers", i.Containers)
	line(" Running", i.ContainersRunning)
	line(" Paused", i.ContainersPaused)
	line(" Stopped", i.ContainersStopped)
	line("Images", i.Images)
	line("Server Version", i.ServerVersion)
	line("Storage Driver", i.Driver)
	for _, pair := range i.DriverStatus {
		line(" "+pair[0], pair[1])
	}
	line("Logging Driver", i.LoggingDriver)
	line("Cgroup Driver", i.CgroupDriver)
	line("Cgroup Version", i.CgroupVersion)
	fmt.Fprintln(d.io.out, " Plugins:")
	line(" Volume", strings.Join(i.Plugins.Volume, " "))
	line(" Network", strings.Join(i.Plugins.Network, " "))
	line(" Log", strings.Join(i.Plugins.Log, " "))
	line("Swarm", i.Swarm.LocalNodeState)
	line("Default Runtime", i.DefaultRuntime)
	line("Init Binary", i.InitBinary)
	fmt.Fprintln(d.io.out, " Security Options:")
	for _, o := range i.SecurityOptions {
		for _, pair := range strings.Split(o, ",") {
			name, value, _ := strings.Cut(pair, "=")
			if name == "name" {
				fmt.Fprintln(d.io.out, "  "+value)
			} else {
				fmt.Fprintf(d.io.out, "   %s: %s\n", strings.ToUpper(name[:1])+name[1:], value)
			}
		}
	}
	line("Kernel Version", i.KernelVersion)
	line("Operating System", i.OperatingSystem)
	line("OSType", i.OSType)
	line("Architecture", i.Architecture)
	line("CPUs", i.NCPU)
	line("Total Memory", units.BytesSize(float64(i.MemTotal)))
	line("Name", i.Name)
	line("ID", i.ID)
	line("Docker Root Dir", i.DockerRootDir)
	line("Live Restore Enabled", i.LiveRestoreEnabled)
	for _, w := range i.Warnings {
		fmt.Fprintln(d.io.err, w)
	}
}

func (d *docker) newVersion() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show versions of this command and the daemon", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return d.version(cmd.Context(), format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output with a Go template, or json")
	return cmd
}

// dockerVersions is what docker version --format sees.
type dockerVersions struct {
	Client struct {
		Version                                            string
		APIVersion                                         string `json:"ApiVersion"`
		DefaultAPIVersion                                  string
		GitCommit, GoVersion, Os, Arch, BuildTime, Context string
	}
	Server *system.VersionResponse
}

func (d *docker) version(ctx context.Context, format string) error {
	var v dockerVersions
	b := version()
	v.Client.Version, v.Client.GitCommit, v.Client.GoVersion, v.Client.BuildTime = b.Version, b.GitCommit, b.GoVersion, b.BuiltAt
	v.Client.Os, v.Client.Arch, v.Client.Context = runtime.GOOS, runtime.GOARCH, "default"
	var server system.VersionResponse
	err := d.call(ctx, "GET", "/version", nil, nil, &server)
	if err == nil {
		v.Server, v.Client.APIVersion, v.Client.DefaultAPIVersion = &server, server.APIVersion, server.APIVersion
	}
	if format != "" {
		if err != nil && strings.Contains(format, "Server") {
			return err
		}
		if e := printFormatted(d.io.out, format, v); e != nil {
			return e
		}
		return err
	}
	fmt.Fprintf(d.io.out, "Client: den\n Version:           %s\n API version:       %s\n Go version:        %s\n Git commit:        %s\n OS/Arch:           %s/%s\n Context:           default\n",
		v.Client.Version, v.Client.APIVersion, v.Client.GoVersion, v.Client.GitCommit, v.Client.Os, v.Client.Arch)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.io.out, "\nServer: %s\n Engine:\n  Version:          %s\n  API version:      %s (minimum version %s)\n  Go version:       %s\n  Git commit:       %s\n  OS/Arch:          %s/%s\n",
		server.Platform.Name, server.Version, server.APIVersion, server.MinAPIVersion, server.GoVersion, server.GitCommit, server.Os, server.Arch)
	return nil
}
