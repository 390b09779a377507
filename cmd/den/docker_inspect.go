package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"den/internal/client"
)

// newInspect is docker inspect, of whatever has the name.
func (d *docker) newInspect() *cobra.Command {
	o := &dockerInspect{}
	cmd := o.command(d, "inspect [OPTIONS] NAME|ID [NAME|ID...]", "Show what the daemon knows of objects")
	cmd.Flags().StringVar(&o.kind, "type", "", "Only inspect objects of this type (container, image, network, volume)")
	cmd.Flags().BoolVarP(&o.size, "size", "s", false, "Count the sizes of containers")
	return cmd
}

// newObjectInspect is inspect of one kind of objects.
func (d *docker) newObjectInspect(kind string) *cobra.Command {
	o := &dockerInspect{kind: kind}
	cmd := o.command(d, "inspect [OPTIONS] NAME [NAME...]", "Show what is known of "+kind+"s")
	if kind == "container" {
		cmd.Flags().BoolVarP(&o.size, "size", "s", false, "Count the sizes of containers")
	}
	return cmd
}

type dockerInspect struct {
	kind, format string
	size         bool
}

func (o *dockerInspect) command(d *docker, use, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.inspect(cmd.Context(), o, args) },
	}
	cmd.Flags().StringVarP(&o.format, "format", "f", "", "Format output with a Go template, or json")
	return cmd
}

// An inspected is an object in the daemon's words, and how docker's client reads them.
type inspected struct {
	raw  json.RawMessage
	into any
}

// inspectVersion is one whose answers have all that templates of scripts ask for: later ones dropped
// .NetworkSettings.IPAddress and others.
const inspectVersion = "/v1.44"

// inspectedKinds are where docker looks for a name, in this order.
func inspectedKinds() []struct {
	kind, path, after string
	into              func() any
} {
	return []struct {
		kind, path, after string
		into              func() any
	}{
		{"container", "/containers/", "/json", func() any { return &container.InspectResponse{} }},
		{"image", "/images/", "/json", func() any { return &image.InspectResponse{} }},
		{"network", "/networks/", "", func() any { return &network.Inspect{} }},
		{"volume", "/volumes/", "", func() any { return &volume.Volume{} }},
	}
}

// inspect prints what is found, and then says what is not.
func (d *docker) inspect(ctx context.Context, o *dockerInspect, names []string) error {
	found := []inspected{}
	var errs []error
	for _, name := range names {
		one, err := d.inspectOne(ctx, o, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, one)
	}
	return errors.Join(append([]error{printInspected(d.io.out, o.format, found)}, errs...)...)
}

func (d *docker) inspectOne(ctx context.Context, o *dockerInspect, name string) (inspected, error) {
	err := fmt.Errorf("Error: No such object: %s", name) //nolint:staticcheck // docker's sentence
	for _, k := range inspectedKinds() {
		if o.kind != "" && o.kind != k.kind {
			continue
		}
		q := url.Values{}
		if o.size && k.kind == "container" {
			q.Set("size", "1")
		}
		x := inspected{into: k.into()}
		e := d.call(ctx, "GET", inspectVersion+k.path+name+k.after, q, nil, &x.raw)
		if errdefs.IsInvalidArgument(e) { // a daemon that does not know the version
			e = d.call(ctx, "GET", k.path+name+k.after, q, nil, &x.raw)
		}
		if e == nil {
			return x, nil
		}
		var refused *client.Error
		if o.kind != "" || !errors.As(e, &refused) {
			return x, e
		}
	}
	return inspected{}, err
}

// printInspected prints objects as the daemon wrote them: all in one list, or each through a template.
func printInspected(w stdio.Writer, format string, found []inspected) error {
	if format == "" || format == "json" {
		list := make([]json.RawMessage, len(found))
		for i, x := range found {
			list[i] = x.raw
		}
		return printFormatted(w, format, list)
	}
	tmpl, err := parseTemplate(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format))
	if err != nil {
		return &codedError{err, 64}
	}
	for _, x := range found {
		raw, err := asMap(x.raw)
		if err != nil {
			return err
		}
		if fields, ok := raw.(map[string]any); ok && fields["Id"] != nil {
			fields["ID"] = fields["Id"] // by either name
		}
		var b bytes.Buffer
		if err := tmpl.Execute(&b, raw); err != nil {
			// Templates are written for the names of docker's own types, too.
			b.Reset()
			if json.Unmarshal(x.raw, x.into) != nil || tmpl.Execute(&b, x.into) != nil {
				return &usageError{fmt.Sprintf("template parsing error: %v", err)}
			}
		}
		if _, err := fmt.Fprintln(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// newPort is docker port.
func (d *docker) newPort() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTOCOL]]", Short: "List where a container's ports are published", Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c struct {
				NetworkSettings struct{ Ports map[string][]portBinding }
			}
			if err := d.call(cmd.Context(), "GET", pathOf("containers", args[0], "json"), nil, nil, &c); err != nil {
				return err
			}
			ports := c.NetworkSettings.Ports
			if len(args) == 2 {
				key := withProtocol(args[1])
				if len(ports[key]) == 0 {
					return fmt.Errorf("Error: No public port '%s' published for %s", key, args[0]) //nolint:staticcheck // docker's sentence
				}
				ports = map[string][]portBinding{key: ports[key]}
			}
			for _, port := range sortedPorts(ports) {
				for _, b := range ports[port] {
					at := net.JoinHostPort(b.HostIP, b.HostPort)
					if len(args) == 1 {
						at = port + " -> " + at
					}
					fmt.Fprintln(d.io.out, at)
				}
			}
			return nil
		},
	}
}

// sortedPorts are ports by number.
func sortedPorts(ports map[string][]portBinding) []string {
	number := func(port string) int {
		n, _, _ := strings.Cut(port, "/")
		i, _ := strconv.Atoi(n) // as the daemon wrote it
		return i
	}
	return slices.SortedFunc(maps.Keys(ports), func(a, b string) int {
		return cmp.Or(cmp.Compare(number(a), number(b)), strings.Compare(a, b))
	})
}
