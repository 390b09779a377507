package dockerapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"den/internal/sandbox"
)

// A column is one that ps can show.
type column struct {
	title string
	value func(p *sandbox.Process, now time.Time) string
}

// columns are those of ps(1) that den knows the values of, by their names and the
// names that ps takes for them.
func columns() map[string]column {
	c := map[string]column{
		"pid":   {"PID", func(p *sandbox.Process, _ time.Time) string { return strconv.Itoa(p.Pid) }},
		"ppid":  {"PPID", func(p *sandbox.Process, _ time.Time) string { return strconv.Itoa(p.PPid) }},
		"user":  {"USER", func(p *sandbox.Process, _ time.Time) string { return p.User }},
		"uid":   {"UID", func(p *sandbox.Process, _ time.Time) string { return strconv.FormatUint(uint64(p.UID), 10) }},
		"comm":  {"COMMAND", func(p *sandbox.Process, _ time.Time) string { return p.Name }},
		"args":  {"COMMAND", commandLine},
		"cmd":   {"CMD", commandLine},
		"tty":   {"TT", func(p *sandbox.Process, _ time.Time) string { return p.TTY }},
		"s":     {"S", func(p *sandbox.Process, _ time.Time) string { return p.State }},
		"stat":  {"STAT", func(p *sandbox.Process, _ time.Time) string { return p.State }},
		"stime": {"STIME", startTime},
		"time":  {"TIME", func(p *sandbox.Process, _ time.Time) string { return clock(p.CPU) }},
		"etime": {"ELAPSED", func(p *sandbox.Process, now time.Time) string { return elapsed(now.Sub(p.Started)) }},
		"pcpu":  {"%CPU", func(p *sandbox.Process, now time.Time) string { return percent(p, now) }},
		"c":     {"C", func(p *sandbox.Process, now time.Time) string { return strings.Split(percent(p, now), ".")[0] }},
		"rss":   {"RSS", func(p *sandbox.Process, _ time.Time) string { return strconv.FormatUint(p.RSSBytes>>10, 10) }},
	}
	for alias, name := range map[string]string{
		"command": "args", "ucomm": "comm", "ucmd": "comm", "euser": "user", "uname": "user", "euid": "uid", "tt": "tty", "tname": "tty",
		"state": "s", "start": "stime", "start_time": "stime", "cputime": "time", "%cpu": "pcpu", "rssize": "rss", "rsz": "rss",
	} {
		c[alias] = c[name]
	}
	return c
}

// top shows a container's processes in the columns that ps would show.
func (s *Server) top(w http.ResponseWriter, c *call) error {
	args := c.query.Get("ps_args")
	if args == "" {
		args = "-ef"
	}
	show, err := psColumns(args)
	if err != nil {
		return err
	}
	processes, err := s.Engine.Top(c.Context(), c.name)
	if err != nil {
		return err
	}
	out := container.TopResponse{Titles: []string{}, Processes: [][]string{}}
	for _, col := range show {
		out.Titles = append(out.Titles, col.title)
	}
	now := time.Now()
	for i := range processes {
		row := []string{}
		for _, col := range show {
			row = append(row, col.value(&processes[i], now))
		}
		out.Processes = append(out.Processes, row)
	}
	return writeJSON(w, http.StatusOK, out)
}

// psColumns reads the arguments of ps that choose columns. All processes of the
// container are shown whatever they choose.
func psColumns(args string) ([]column, error) {
	known := columns()
	names := strings.Fields("pid tty=TTY time cmd")
	var chosen []string // by -o, which may come more than once and beats the others
	fields := strings.Fields(args)
	for i := 0; i < len(fields); i++ {
		word := fields[i]
		flags := strings.TrimPrefix(word, "-")
		list, chooses := strings.CutPrefix(word, "--format=")
		if before, after, ok := strings.Cut(flags, "o"); ok && !chooses && !strings.ContainsAny(before, "-,") {
			list, chooses = after, true
			if list == "" && i+1 < len(fields) {
				i++
				list = fields[i]
			}
		}
		switch {
		case chooses:
			chosen = append(chosen, strings.Split(list, ",")...)
		case flags == "aux" || flags == "axu" || flags == word && strings.Contains(flags, "u"):
			names = strings.Fields("user pid %cpu rss tty=TTY stat start time command")
		case strings.Contains(flags, "f"):
			names = strings.Fields("user=UID pid ppid c stime tty=TTY time cmd")
		}
	}
	if chosen != nil {
		names = chosen
	}
	var out []column
	pid := false
	for _, n := range names {
		if n == "" {
			continue
		}
		name, title, titled := strings.Cut(n, "=")
		col, ok := known[strings.ToLower(name)]
		if !ok {
			return nil, invalid("ps: unknown column %q: den knows pid, ppid, user, uid, comm, args, tty, stat, stime, time, etime, pcpu and rss", name)
		}
		if titled {
			col.title = title
		}
		pid = pid || col.title == "PID"
		out = append(out, col)
	}
	if !pid {
		return nil, &statusError{errdefs.ErrInternal, "Couldn't find PID field in ps output"}
	}
	return out, nil
}

func commandLine(p *sandbox.Process, _ time.Time) string {
	if len(p.Command) == 0 {
		return "[" + p.Name + "]"
	}
	return strings.Join(p.Command, " ")
}

// startTime is ps's: the time of a day, or the day when that is not today.
func startTime(p *sandbox.Process, now time.Time) string {
	if now.Sub(p.Started) > 24*time.Hour {
		return p.Started.Format("Jan02")
	}
	return p.Started.Format("15:04")
}

func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

func elapsed(d time.Duration) string {
	s := max(0, int(d.Seconds()))
	switch {
	case s >= 86400:
		return fmt.Sprintf("%d-%02d:%02d:%02d", s/86400, s/3600%24, s/60%60, s%60)
	case s >= 3600:
		return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

// percent is the share of a CPU that a process took since it began, as ps has it.
func percent(p *sandbox.Process, now time.Time) string {
	life := now.Sub(p.Started)
	if life <= 0 {
		return "0.0"
	}
	return strconv.FormatFloat(100*p.CPU.Seconds()/life.Seconds(), 'f', 1, 64)
}
