package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/spf13/cobra"

	"den/internal/client"
)

func (d *docker) newAttach() *cobra.Command {
	var noStdin, sigProxy bool
	cmd := &cobra.Command{
		Use: "attach [OPTIONS] CONTAINER", Short: "Attach to the streams of a running container", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := d.lookUp(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !c.State.Running || c.State.Paused || c.State.Restarting {
				return fmt.Errorf("cannot attach to a container that is %s: start it first", c.State.Status)
			}
			o := &dockerRun{running: true}
			o.tty, o.interactive, o.sigProxy = c.Config.Tty, !noStdin && c.Config.OpenStdin, sigProxy
			return d.attached(cmd.Context(), o, c.ID)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&noStdin, "no-stdin", false, "Do not attach standard input")
	f.BoolVar(&sigProxy, "sig-proxy", true, "Give the signals that come here to the container")
	f.String("detach-keys", "", "Accepted")
	hide(f, "detach-keys")
	return cmd
}

// lookUp inspects one container.
func (d *docker) lookUp(ctx context.Context, name string) (c container.InspectResponse, err error) {
	if err = d.call(ctx, "GET", pathOf("containers", name, "json"), nil, nil, &c); err == nil && (c.Config == nil || c.State == nil) {
		err = fmt.Errorf("container %s: the daemon does not say what it is", name)
	}
	return c, err
}

func (d *docker) newEvents() *cobra.Command {
	var filters []string
	var since, until, format string
	cmd := &cobra.Command{
		Use: "events [OPTIONS]", Short: "Print what happens to the daemon's objects, as it happens", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterQuery(filters)
			if err != nil {
				return err
			}
			if err := setTimes(q, since, until); err != nil {
				return err
			}
			_, body, err := d.ask(cmd.Context(), client.Request{Method: "GET", Path: "/events", Query: q})
			if err != nil {
				return err
			}
			defer body.Close()
			return d.printEvents(body, format)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&filters, "filter", "f", nil, "Filter output")
	f.StringVar(&since, "since", "", "Show what happened since a time, or a duration ago")
	f.StringVar(&until, "until", "", "End at a time, or a duration ago")
	f.StringVar(&format, "format", "", "Format output with a Go template, or json")
	return cmd
}

// setTimes puts --since and --until into a query, in seconds since 1970.
func setTimes(q url.Values, since, until string) error {
	for name, v := range map[string]string{"since": since, "until": until} {
		if v == "" {
			continue
		}
		t, err := parseTime(name, v, time.Now())
		if err != nil {
			return err
		}
		q.Set(name, fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()))
	}
	return nil
}

// eventTime is RFC 3339 with all nine digits, so that lines are aligned.
const eventTime = "2006-01-02T15:04:05.000000000Z07:00"

func (d *docker) printEvents(r stdio.Reader, format string) error {
	for dec := json.NewDecoder(r); ; {
		var e events.Message
		if err := dec.Decode(&e); errors.Is(err, stdio.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if format != "" {
			if err := printFormatted(d.io.out, cmp.Or(map[string]string{"json": "{{json .}}"}[format], format), e); err != nil {
				return err
			}
			continue
		}
		var attributes []string
		for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
			attributes = append(attributes, k+"="+e.Actor.Attributes[k])
		}
		line := fmt.Sprintf("%s %s %s %s", time.Unix(0, e.TimeNano).Format(eventTime), e.Type, e.Action, e.Actor.ID)
		if len(attributes) > 0 {
			line += " (" + strings.Join(attributes, ", ") + ")"
		}
		if _, err := fmt.Fprintln(d.io.out, line); err != nil {
			return err
		}
	}
}

func (d *docker) newStats() *cobra.Command {
	var all, once, noTrunc bool
	t := table{columns: []column{
		{"ID", "CONTAINER ID"}, {"Name", "NAME"}, {"CPUPerc", "CPU %"}, {"MemUsage", "MEM USAGE / LIMIT"}, {"MemPerc", "MEM %"}, {"NetIO", "NET I/O"}, {"BlockIO", "BLOCK I/O"}, {"PIDs", "PIDS"},
	}, headers: map[string]string{"Container": "CONTAINER"}, id: "ID"}
	cmd := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]", Short: "Show what containers use", Args: rangeArgs(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for {
				rows, err := d.stats(cmd.Context(), args, all, noTrunc)
				if err != nil {
					return err
				}
				if !once {
					fmt.Fprint(d.io.out, "\x1b[H\x1b[2J")
				}
				if err := t.print(d.io.out, rows); err != nil || once {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(500 * time.Millisecond):
				}
			}
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Show those that do not run, too")
	f.BoolVar(&once, "no-stream", false, "Print one result and end")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not truncate")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

// stats asks for what each container uses, all at once: the daemon takes a second for two samples.
func (d *docker) stats(ctx context.Context, names []string, all, noTrunc bool) ([]map[string]any, error) {
	listed := len(names) == 0
	if listed {
		q := url.Values{}
		if all {
			q.Set("all", "1")
		}
		var list []listedContainer
		if err := d.call(ctx, "GET", "/containers/json", q, nil, &list); err != nil {
			return nil, err
		}
		for _, c := range list {
			names = append(names, c.ID)
		}
	}
	rows, errs := make([]map[string]any, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			var s container.StatsResponse
			if errs[i] = d.call(ctx, "GET", pathOf("containers", name, "stats"), url.Values{"stream": {"0"}}, nil, &s); errs[i] == nil {
				rows[i] = statsRow(name, &s, noTrunc)
			}
		})
	}
	wg.Wait()
	if listed { // one of them may be gone by now
		for i, err := range errs {
			if errdefs.IsNotFound(err) {
				errs[i] = nil
			}
		}
		rows = slices.DeleteFunc(rows, func(row map[string]any) bool { return row == nil })
	}
	return rows, errors.Join(errs...)
}

// statsRow is one line of docker stats. Memory is without what the kernel can drop at once.
func statsRow(name string, s *container.StatsResponse, noTrunc bool) map[string]any {
	used, limit := s.MemoryStats.Usage, s.MemoryStats.Limit
	for _, key := range []string{"total_inactive_file", "inactive_file"} { // cgroups of version 1, 2
		if v, ok := s.MemoryStats.Stats[key]; ok && v < used {
			used -= v
			break
		}
	}
	share := 0.0
	if limit > 0 {
		share = float64(used) / float64(limit) * 100
	}
	var received, sent, read, written uint64
	for _, n := range s.Networks {
		received, sent = received+n.RxBytes, sent+n.TxBytes
	}
	for _, b := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op) {
		case "read":
			read += b.Value
		case "write":
			written += b.Value
		}
	}
	id := s.ID
	if !noTrunc {
		id = id[:min(12, len(id))]
	}
	both := func(a, b uint64) string {
		return units.HumanSizeWithPrecision(float64(a), 3) + " / " + units.HumanSizeWithPrecision(float64(b), 3)
	}
	return map[string]any{
		"Container": name, "ID": id, "Name": strings.TrimPrefix(s.Name, "/"), "CPUPerc": fmt.Sprintf("%.2f%%", cpuPercent(s)), "MemUsage": units.BytesSize(float64(used)) + " / " + units.BytesSize(float64(limit)),
		"MemPerc": fmt.Sprintf("%.2f%%", share), "NetIO": both(received, sent), "BlockIO": both(read, written), "PIDs": s.PidsStats.Current,
	}
}

// cpuPercent is the processor time between the two samples, 100 for one processor.
func cpuPercent(s *container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	of := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	processors := float64(s.CPUStats.OnlineCPUs)
	if processors == 0 {
		processors = float64(len(s.CPUStats.CPUUsage.PercpuUsage))
	}
	if used <= 0 || of <= 0 {
		return 0
	}
	return used / of * processors * 100
}
