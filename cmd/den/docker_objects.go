package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (d *docker) newNetworkCreate() *cobra.Command {
	var driver string
	var labels, options, subnets, gateways, ranges []string
	var internal, ipv6, attachable bool
	cmd := &cobra.Command{
		Use: "create [OPTIONS] NAME", Short: "Create a network", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at := func(list []string, i int) string {
				if i < len(list) {
					return list[i]
				}
				return ""
			}
			var pools []map[string]string
			for i, s := range subnets {
				pools = append(pools, map[string]string{"Subnet": s, "Gateway": at(gateways, i), "IPRange": at(ranges, i)})
			}
			body := map[string]any{
				"Name": args[0], "Driver": driver, "Labels": keyValues(labels), "Options": keyValues(options), "Internal": internal, "EnableIPv6": ipv6, "Attachable": attachable,
				"IPAM": map[string]any{"Driver": "default", "Config": pools},
			}
			var made struct {
				ID string `json:"Id"`
			}
			if err := d.call(cmd.Context(), "POST", "/networks/create", nil, body, &made); err != nil {
				return err
			}
			_, err := fmt.Fprintln(d.io.out, made.ID)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&driver, "driver", "d", "bridge", "Driver")
	f.StringArrayVar(&labels, "label", nil, "Label")
	f.StringArrayVarP(&options, "opt", "o", nil, "Driver option")
	f.StringArrayVar(&subnets, "subnet", nil, "Subnet")
	f.StringArrayVar(&gateways, "gateway", nil, "Gateway")
	f.StringArrayVar(&ranges, "ip-range", nil, "Range that addresses are given from")
	f.BoolVar(&internal, "internal", false, "Reach nothing outside")
	f.BoolVar(&ipv6, "ipv6", false, "IPv6, too")
	f.BoolVar(&attachable, "attachable", false, "Accepted")
	return cmd
}

// newNetworkConnect is network connect or disconnect.
func (d *docker) newNetworkConnect(verb string) *cobra.Command {
	var aliases []string
	var ip string
	var force bool
	cmd := &cobra.Command{
		Use: verb + " [OPTIONS] NETWORK CONTAINER", Short: strings.ToUpper(verb[:1]) + verb[1:] + " a container", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"Container": args[1], "Force": force}
			if verb == "connect" {
				body["EndpointConfig"] = map[string]any{"Aliases": aliases, "IPAMConfig": map[string]string{"IPv4Address": ip}}
			}
			return d.call(cmd.Context(), "POST", pathOf("networks", args[0], verb), nil, body, nil)
		},
	}
	if verb == "connect" {
		cmd.Flags().StringArrayVar(&aliases, "alias", nil, "Name in the network")
		cmd.Flags().StringVar(&ip, "ip", "", "IPv4 address")
	} else {
		cmd.Flags().BoolVarP(&force, "force", "f", false, "Disconnect in any case")
	}
	return cmd
}

func (d *docker) newVolumeCreate() *cobra.Command {
	var driver string
	var labels, options []string
	cmd := &cobra.Command{
		Use: "create [OPTIONS] [NAME]", Short: "Create a volume", Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"Name": strings.Join(args, ""), "Driver": driver, "Labels": keyValues(labels), "DriverOpts": keyValues(options)}
			var made struct{ Name string }
			if err := d.call(cmd.Context(), "POST", "/volumes/create", nil, body, &made); err != nil {
				return err
			}
			_, err := fmt.Fprintln(d.io.out, made.Name)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&driver, "driver", "d", "local", "Driver")
	f.StringArrayVar(&labels, "label", nil, "Label")
	f.StringArrayVarP(&options, "opt", "o", nil, "Driver option")
	return cmd
}

// newObjects is network ls or volume ls.
func (d *docker) newObjects(kind string) *cobra.Command {
	var filters []string
	var noTrunc bool
	t := table{
		columns: []column{{"ID", "NETWORK ID"}, {"Name", "NAME"}, {"Driver", "DRIVER"}, {"Scope", "SCOPE"}},
		headers: map[string]string{"Labels": "LABELS", "CreatedAt": "CREATED AT", "IPv4": "IPV4", "IPv6": "IPV6", "Internal": "INTERNAL"}, id: "ID",
	}
	if kind == "volume" {
		t.columns, t.id = []column{{"Driver", "DRIVER"}, {"Name", "VOLUME NAME"}}, "Name"
		t.headers = map[string]string{"Labels": "LABELS", "Mountpoint": "MOUNTPOINT", "Scope": "SCOPE", "Size": "SIZE", "Links": "LINKS", "Status": "STATUS", "Availability": "AVAILABILITY", "Group": "GROUP"}
	}
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List " + kind + "s", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterQuery(filters)
			if err != nil {
				return err
			}
			var list []listedObject
			if kind == "volume" {
				var all struct{ Volumes []listedObject }
				err = d.call(cmd.Context(), "GET", "/volumes", q, nil, &all)
				list = all.Volumes
			} else {
				err = d.call(cmd.Context(), "GET", "/networks", q, nil, &list)
			}
			if err != nil {
				return err
			}
			rows := []map[string]any{}
			for _, o := range list {
				rows = append(rows, o.row(kind, noTrunc))
			}
			return t.print(d.io.out, rows)
		},
	}
	f := cmd.Flags()
	if kind == "network" {
		f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	}
	f.StringArrayVarP(&filters, "filter", "f", nil, "Filter output")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Only show names or IDs")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

// A listedObject is one of GET /networks or of GET /volumes.
type listedObject struct {
	ID                              string `json:"Id"`
	Name, Driver, Scope, Mountpoint string
	Labels                          map[string]string
	Created                         time.Time
	EnableIPv4, EnableIPv6          bool
	Internal                        bool
}

// row is what docker's templates see of it.
func (o *listedObject) row(kind string, noTrunc bool) map[string]any {
	r := map[string]any{"Name": o.Name, "Driver": o.Driver, "Scope": o.Scope, "Labels": joinLabels(o.Labels), allLabels: o.Labels}
	if kind == "volume" {
		r["Mountpoint"] = o.Mountpoint
		for _, unknown := range []string{"Availability", "Group", "Links", "Size", "Status"} {
			r[unknown] = "N/A"
		}
		return r
	}
	r["ID"] = shortDigest(o.ID, noTrunc)
	r["CreatedAt"] = o.Created.Format("2006-01-02 15:04:05.999999999 -0700 MST")
	r["IPv4"], r["IPv6"], r["Internal"] = strconv.FormatBool(o.EnableIPv4), strconv.FormatBool(o.EnableIPv6), strconv.FormatBool(o.Internal)
	return r
}

func (d *docker) newObjectsRemove(kind string) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] NAME [NAME...]", Aliases: []string{"remove"}, Short: "Remove " + kind + "s", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force && kind == "volume" {
				q.Set("force", "1")
			}
			return d.each(args, true, func(name string) error {
				return d.call(cmd.Context(), "DELETE", pathOf(kind+"s", name), q, nil, nil)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "What is not there is no error")
	return cmd
}

// newPrune is container, image, network or volume prune.
func (d *docker) newPrune(kind string) *cobra.Command {
	var filters []string
	var force, all bool
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused " + kind + "s", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !confirm(d.io, "This will remove all unused "+kind+"s.") {
				return nil
			}
			if all && kind == "image" {
				filters = append(filters, "dangling=false")
			}
			if all && kind == "volume" {
				filters = append(filters, "all=1")
			}
			q, err := filterQuery(filters)
			if err != nil {
				return err
			}
			var got map[string]json.RawMessage
			if err := d.call(cmd.Context(), "POST", pathOf(kind+"s", "prune"), q, nil, &got); err != nil {
				return err
			}
			return d.pruned(got)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&filters, "filter", nil, "Filter what goes")
	f.BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	f.BoolVarP(&all, "all", "a", false, "Remove also what has a name")
	return cmd
}

// pruned prints the answer of a prune.
func (d *docker) pruned(got map[string]json.RawMessage) error {
	for _, key := range []string{"ContainersDeleted", "NetworksDeleted", "VolumesDeleted"} {
		var names []string
		if json.Unmarshal(got[key], &names) == nil {
			printRemoved(d.io, "Deleted "+strings.TrimSuffix(key, "Deleted")+":", names)
		}
	}
	var images []struct{ Untagged, Deleted string }
	if json.Unmarshal(got["ImagesDeleted"], &images) == nil {
		var lines []string
		for _, i := range images {
			if i.Untagged != "" {
				lines = append(lines, "untagged: "+i.Untagged)
			} else {
				lines = append(lines, "deleted: "+i.Deleted)
			}
		}
		printRemoved(d.io, "Deleted Images:", lines)
	}
	if raw, ok := got["SpaceReclaimed"]; ok {
		var bytes float64
		if json.Unmarshal(raw, &bytes) == nil {
			fmt.Fprintln(d.io.out, "Total reclaimed space:", units.HumanSize(bytes))
		}
	}
	return nil
}

func (d *docker) newSystemPrune() *cobra.Command {
	var force, all, volumes bool
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused data", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !confirm(d.io, "This will remove all stopped containers, unused networks, dangling images and build cache.") {
				return nil
			}
			for _, kind := range []string{"containers", "networks", "volumes", "images", "build"} {
				q := url.Values{}
				if kind == "volumes" && !volumes {
					continue
				}
				if kind == "images" && all {
					q.Set("filters", `{"dangling":["false"]}`)
				}
				var got map[string]json.RawMessage
				if err := d.call(cmd.Context(), "POST", pathOf(kind, "prune"), q, nil, &got); err != nil {
					return err
				}
				if err := d.pruned(got); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	f.BoolVarP(&all, "all", "a", false, "Remove all unused images")
	f.BoolVar(&volumes, "volumes", false, "Remove unused volumes, too")
	return cmd
}
