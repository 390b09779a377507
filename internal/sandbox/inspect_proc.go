package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clockTick is the unit of times in /proc/PID/stat: USER_HZ is 100 on amd64 and arm64.
	clockTick = 10 * time.Millisecond
	// maxCommandBytes bounds what is read of a command line.
	maxCommandBytes = 64 << 10
	maxNamedUsers   = 1 << 16
)

// procStat is what is used of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	name, state           string
	ppid                  int
	tty                   uint64
	user, system          time.Duration // with those of children that were waited for
	ownCPU, sinceBoot     time.Duration
	threads, residentPage uint64
}

func readProcStat(pid int) (procStat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, false
	}
	return parseProcStat(string(b))
}

// parseProcStat reads a line of which the name, in parentheses, may contain anything.
func parseProcStat(line string) (s procStat, ok bool) {
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || shut < open {
		return s, false
	}
	f := strings.Fields(line[shut+1:])
	if len(f) < 22 {
		return s, false
	}
	n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
	ticks := func(i ...int) (d time.Duration) {
		for _, i := range i {
			d += time.Duration(n(i)) * clockTick
		}
		return d
	}
	return procStat{
		name: line[open+1 : shut], state: f[0], ppid: int(n(1)), tty: n(4), user: ticks(11, 13), system: ticks(12, 14),
		ownCPU: ticks(11, 12), sinceBoot: ticks(19), threads: n(17), residentPage: n(21),
	}, true
}

// ttyName is the name below /dev of a terminal by its number, "?" for none.
func ttyName(nr uint64) string {
	major, minor := nr>>8&0xfff, nr&0xff|nr>>12&0xfff00
	switch {
	case major >= 136 && major <= 143: // Unix98 slaves, 256 each before minors had 20 bits
		return fmt.Sprintf("pts/%d", (major-136)<<8+minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	}
	return "?"
}

// bootTime is when the machine started, as times of processes count.
func bootTime() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}

// readProcess is false for one that is gone.
func readProcess(pid int) (Process, bool) {
	s, ok := readProcStat(pid)
	if !ok {
		return Process{}, false
	}
	p := Process{
		Pid: pid, PPid: s.ppid, State: s.state, TTY: ttyName(s.tty), Started: bootTime().Add(s.sinceBoot), CPU: s.ownCPU,
		Name: s.name, RSSBytes: s.residentPage * uint64(os.Getpagesize()),
	}
	if f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
		b, _ := io.ReadAll(io.LimitReader(f, maxCommandBytes))
		f.Close()
		if text := strings.TrimRight(string(b), "\x00"); text != "" {
			p.Command = strings.Split(text, "\x00")
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Process{}, false
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(ids); len(f) > 1 { // real, effective
				uid, _ := strconv.ParseUint(f[1], 10, 32)
				p.UID = uint32(uid)
			}
			break
		}
	}
	return p, true
}

// UserNames reads passwd(5); the first name of an id counts.
func UserNames(r io.Reader) map[uint32]string {
	names := map[uint32]string{}
	sc := bufio.NewScanner(io.LimitReader(r, maxPasswdBytes))
	for sc.Scan() && len(names) < maxNamedUsers {
		f := strings.Split(sc.Text(), ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		if _, ok := names[uint32(n)]; !ok {
			names[uint32(n)] = f[0]
		}
	}
	return names
}

// addProcess adds what one process uses.
func (st *Stats) addProcess(pid int) {
	s, ok := readProcStat(pid)
	if !ok {
		return
	}
	st.CPUUser += s.user
	st.CPUSystem += s.system
	st.CPUTotal = st.CPUUser + st.CPUSystem
	st.MemoryBytes += s.residentPage * uint64(os.Getpagesize())
	st.Pids += s.threads
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)) // needs more rights than the rest
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, err := strconv.ParseUint(value, 10, 64)
		switch {
		case err != nil:
		case key == "read_bytes":
			st.ReadBytes += n
		case key == "write_bytes":
			st.WriteBytes += n
		}
	}
}

// readInterfaces counts what passed the network devices of a process, but for its loopback.
func readInterfaces(pid int) []InterfaceStats {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseInterfaces(f)
}

// maxInterfaces bounds how many devices are looked at: with CAP_NET_ADMIN a payload can make any number.
const maxInterfaces = 1 << 10

func parseInterfaces(r io.Reader) []InterfaceStats {
	var all []InterfaceStats
	for sc := bufio.NewScanner(r); sc.Scan() && len(all) < maxInterfaces; {
		name, counters, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		all = append(all, InterfaceStats{
			Name: name, RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		})
	}
	return all
}
