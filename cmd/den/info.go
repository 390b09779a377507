package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/probe"
	"den/internal/progress"
	"den/internal/sandbox"
)

// info is what den info prints.
type info struct {
	Version       string
	Store         string
	BaseStores    []string `json:",omitempty"`
	FileSystem    string
	Backing       string         `json:",omitempty"`
	Ground        *daemon.Ground `json:",omitempty"`
	EngineID      string
	Class         string
	Rung          string
	RungWhy       string
	RungCannot    []string `json:",omitempty"`
	Platform      string   `json:",omitempty"` // of the sentry
	Driver        string
	DriverWhy     string
	Containers    int
	Running       int
	Images        int
	Layers, Blobs int
	CacheRecords  int
	CacheMounts   int
	UsedBytes     int64
	NCPU          int
	OSType        string
	Architecture  string
	KernelVersion string
	CgroupVersion int
	Warnings      []string
}

func newInfo(g *globals, io streams) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [OPTIONS]",
		Short: "Show what den found around it and chose",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				x, err := gatherInfo(cmd.Context(), d)
				if err != nil {
					return err
				}
				if format != "" {
					return printFormatted(io.out, format, x)
				}
				printInfo(io, x)
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output with a Go template, or json")
	return cmd
}

func gatherInfo(ctx context.Context, d *daemon.Den) (*info, error) {
	x := &info{
		Version: releaseVersion, Store: d.Store.Root(), BaseStores: d.Store.Bases(), EngineID: d.Store.EngineID(), Class: d.Store.Class(),
		NCPU: runtime.NumCPU(), OSType: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	list, err := d.Images.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	x.Images = len(list)
	u, err := d.Store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	x.Layers, x.Blobs, x.CacheRecords, x.CacheMounts = u.Layers.Count, u.Blobs.Count, u.Records.Count, u.CacheMounts.Count
	for _, part := range []int64{u.Layers.Bytes, u.Blobs.Bytes, u.Records.Bytes, u.CacheMounts.Bytes, u.Volumes.Bytes, u.Containers.Bytes} {
		x.UsedBytes += part
	}
	containers, err := d.Containers().List()
	if err != nil {
		return nil, err
	}
	x.Containers = len(containers)
	for i := range containers {
		if containers[i].Running() {
			x.Running++
		}
	}
	ground, err := d.Ground()
	if err != nil {
		return nil, err
	}
	if x.Backing = ground.String(); x.Backing != "" {
		x.Ground = &ground
	}
	x.surroundings(ctx, d)
	return x, nil
}

// surroundings is what the outer container allows and what den makes of it.
func (x *info) surroundings(ctx context.Context, d *daemon.Den) {
	var facts probe.Facts
	r, err := d.Runner(ctx)
	if err == nil {
		facts = r.Facts
		x.Rung, x.RungWhy, x.RungCannot, x.Platform = r.Choice.Name(), r.Choice.Why, r.Choice.Cannot, r.Choice.Platform
		x.Driver, x.DriverWhy = r.Driver.Name(), r.DriverWhy
	} else {
		facts = d.Facts(ctx)
		x.Rung, x.RungWhy = "none", progress.Plain(err.Error())
		x.Driver, x.DriverWhy = "none", "no rung"
	}
	x.FileSystem, x.KernelVersion, x.CgroupVersion = facts.FSType, facts.Kernel, facts.Cgroup
	switch {
	case r != nil && r.Choice.Rung == sandbox.RungSentry:
		x.Warnings = append(x.Warnings, "the sentry keeps --memory, --cpus, --cpuset-cpus and --pids-limit; --cpu-shares and --memory-swap are not enforced on this rung")
	case r != nil && r.Choice.Rung == sandbox.RungChroot:
		x.Warnings = append(x.Warnings, "limits (--memory, --cpus, --pids-limit) are not enforced on this rung")
	case facts.CgroupErr != "":
		x.Warnings = append(x.Warnings, "limits (--memory, --cpus, --pids-limit) are not enforced: "+facts.CgroupErr)
	}
}

func printInfo(io streams, x *info) {
	line := func(name string, value any) {
		if name != "" {
			name += ":"
		}
		fmt.Fprintf(io.out, "%-16s %v\n", name, value)
	}
	line("Version", x.Version)
	line("Store", fmt.Sprintf("%s (%s)", x.Store, x.FileSystem))
	if x.Backing != "" {
		line("Backing", x.Backing)
	}
	for _, dir := range x.BaseStores {
		line("Base store", dir)
	}
	line("Engine", x.EngineID)
	line("Owners on disk", x.Class)
	why := x.RungWhy
	if x.Platform != "" {
		why = fmt.Sprintf("sentry, %s: %s", x.Platform, why)
	}
	line("Rung", fmt.Sprintf("%s (%s)", x.Rung, why))
	for _, c := range x.RungCannot {
		line("", c)
	}
	line("Storage driver", fmt.Sprintf("%s (%s)", x.Driver, x.DriverWhy))
	line("Containers", fmt.Sprintf("%d (%d running)", x.Containers, x.Running))
	line("Images", x.Images)
	line("Layers", x.Layers)
	line("Blobs", x.Blobs)
	line("Cache records", x.CacheRecords)
	line("Cache mounts", x.CacheMounts)
	line("Used", units.HumanSize(float64(x.UsedBytes)))
	line("CPUs", x.NCPU)
	line("Kernel", x.KernelVersion)
	line("Architecture", x.OSType+"/"+x.Architecture)
	line("Cgroups", x.CgroupVersion)
	for _, w := range x.Warnings {
		fmt.Fprintln(io.err, "WARNING:", w)
	}
}
