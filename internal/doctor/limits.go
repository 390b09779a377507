package doctor

import (
	"fmt"
	"time"

	"den/internal/sandbox"
)

// What den and its steps need: den itself stays below 256 MiB, and with a sentry
// below 512 MiB. A compiler has a dozen threads.
const (
	littleMemory       = 512 << 20
	littleMemorySentry = 1 << 30
	littlePids         = 256
	enoughMemory       = "2g"
	enoughPids         = 2048
)

func limitChecks(in Input) []Check {
	l, need := in.Limits, int64(littleMemory)
	if in.ChoiceErr == nil && in.Choice.Rung == sandbox.RungSentry {
		need = littleMemorySentry
	}
	memory := Check{ID: "limits.memory", Area: areaLimits, Status: OK, Text: "no limit"}
	if l.MachineBytes > 0 {
		memory.Text += ", the machine has " + size(l.MachineBytes)
	}
	if l.MemoryBytes > 0 {
		memory.Text = fmt.Sprintf("%s, of which %s are in use", size(l.MemoryBytes), size(l.MemoryUsedBytes))
		if l.MemoryBytes < need {
			memory.Status = Short
			memory.Text += fmt.Sprintf("; den and a step that compiles want %s", size(need))
			memory.Fix = setting{memory: enoughMemory}.fix()
		}
	}
	pids := Check{ID: "limits.pids", Area: areaLimits, Status: OK, Text: "no limit of processes"}
	if l.Pids > 0 {
		pids.Text = fmt.Sprintf("%d processes and threads, of which there are %d", l.Pids, l.PidsUsed)
		if l.Pids-l.PidsUsed < littlePids {
			pids.Status = Short
			pids.Text += fmt.Sprintf("; a build wants %d", littlePids)
			pids.Fix = setting{pids: enoughPids}.fix()
		}
	}
	return []Check{memory, pids}
}

// What a clock may be off by: TLS certificates and tokens mind minutes, and file
// times seconds.
const (
	firstYear   = 2024
	maxSkew     = 2 * time.Minute
	hopeless    = 24 * time.Hour
	maxFileSkew = 2 * time.Second
)

func registryChecks(in Input) []Check {
	if len(in.Registries) == 0 {
		return []Check{{ID: "registry", Area: areaRegistry, Status: Note,
			Text: "none is configured, so that none was asked: den doctor --registry HOST asks one"}}
	}
	var l []Check
	for _, r := range in.Registries {
		c := Check{ID: "registry." + r.Host, Area: areaRegistry, Status: OK, Text: fmt.Sprintf("%s, %s, answers", r.Host, r.As)}
		if r.Err != nil {
			c.Status, c.Text = Short, fmt.Sprintf("%s, %s: %v", r.Host, r.As, r.Err)
		}
		l = append(l, c)
	}
	return l
}

// clockChecks compare with the clocks of registries and of the file system.
func clockChecks(in Input) []Check {
	now := in.Now.UTC().Format(time.RFC3339)
	c := Check{ID: "clock", Area: areaClock, Status: OK, Text: now + "; nothing to compare it with but the store's files, which agree"}
	set := &Fix{Machine: []string{"timedatectl set-ntp true"}}
	if in.Store.Disk.Err != nil {
		c.Text = now + "; nothing to compare it with"
	}
	if skew := in.Store.Disk.Ahead.Abs(); skew > maxFileSkew {
		c.Status, c.Fix = Short, set
		c.Text = fmt.Sprintf("%s; files of the store are %s off: its file system has another clock", now, skew.Round(time.Second))
	}
	for _, r := range in.Registries {
		if r.Date.IsZero() {
			continue
		}
		// A registry's date has whole seconds.
		skew := r.At.Sub(r.Date)
		if skew.Abs() <= maxSkew {
			if c.Status == OK {
				c.Text = fmt.Sprintf("%s; %s agrees", now, r.Host)
			}
			continue
		}
		c.Status, c.Fix = Short, set
		if skew.Abs() > hopeless {
			c.Status = Bad
		}
		c.Text = fmt.Sprintf("%s; %s than that of %s: certificates and tokens may seem expired or not yet valid", now, offset(skew), r.Host)
		break
	}
	if in.Now.Year() < firstYear {
		c.Status, c.Fix = Bad, set
		c.Text = fmt.Sprintf("%s: it was never set, so that no certificate is valid", now)
	}
	return []Check{c}
}

func offset(skew time.Duration) string {
	if skew < 0 {
		return skew.Abs().Round(time.Second).String() + " behind"
	}
	return skew.Round(time.Second).String() + " further"
}
