package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// A sample is one measured part.
type sample struct {
	wall, cpu time.Duration // cpu is user and system time of everything in the group
	rssMiB    int64         // peak of the peer's largest process of its own; 0: it has none
	growthMB  float64       // what its stores take more, in units of 10^6 bytes
}

// A group is a control group that the peers' processes run in, daemons and
// containers included, so that their CPU time can be read in one place.
type group struct {
	dir    string   // of the group
	made   []string // in every hierarchy: runc makes its parent's in those of version 1
	parent string   // for the containers of a daemon, as runc names it
	leaf   *os.File
}

// newGroup makes the group in the version 2 hierarchy, which counts CPU time
// also where version 1 has the controllers.
func newGroup() (*group, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("den-bench-%d", os.Getpid())
	g := &group{parent: "/" + name + "/c"}
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" && f[2] != "cgroup" {
			continue
		}
		g.made = append(g.made, filepath.Join(f[1], name))
		if f[2] == "cgroup2" {
			g.dir = filepath.Join(f[1], name)
		}
	}
	if g.dir == "" {
		return nil, errors.New("no cgroup2 is mounted, so CPU time cannot be taken: mount -t cgroup2 none DIR")
	}
	// Containers go beside the other processes: a group has processes or groups.
	leaf := filepath.Join(g.dir, "p")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	if g.leaf, err = os.Open(leaf); err != nil {
		return nil, errors.Join(fmt.Errorf("control group: %w", err), g.remove())
	}
	return g, nil
}

// cpu is the time that everything in the group has used so far.
func (g *group) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(stat), "\n") {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", g.dir)
}

// remove waits for processes that nobody else waits for.
func (g *group) remove() error {
	if g.leaf != nil {
		g.leaf.Close()
	}
	return eventually(10*time.Second, func() error {
		var err error
		for _, dir := range g.made {
			err = errors.Join(err, removeGroups(dir))
		}
		return err
	})
}

// removeGroups removes a group and those in it.
func removeGroups(dir string) error {
	members, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, m := range members {
		if m.IsDir() {
			err = errors.Join(err, removeGroups(filepath.Join(dir, m.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// command is a process of the group that dies with the bench.
func (g *group) command(dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(g.leaf.Fd())}
	return cmd
}

// run runs a command of the group to its end and says what it said if it fails.
func (g *group) run(dir string, env []string, args ...string) error {
	var rss peak
	return g.runPeak(&rss, dir, env, args...)
}

// commandLimit is far beyond what any part takes; what is still there then hangs.
const commandLimit = 10 * time.Minute

// runPeak is run that keeps the command's peak resident size.
func (g *group) runPeak(rss *peak, dir string, env []string, args ...string) error {
	cmd := g.command(dir, env, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Start()
	if err == nil {
		stop := rss.watch(cmd.Process.Pid)
		hangs := time.AfterFunc(commandLimit, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		hangs.Stop()
		stop()
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out.Bytes())
	}
	return nil
}

// A peak is the largest resident size seen, in KiB.
type peak struct{ kib atomic.Int64 }

// watch looks at a process's own high-water mark until it is stopped. Not
// ru_maxrss: that is also the mark of whoever called exec (exec_mmap in
// fs/exec.c) and of the children, a compiler for example. The mark only grows,
// so what is missed is growth in the last two milliseconds.
func (p *peak) watch(pid int) (stop func()) {
	return often(2*time.Millisecond, func() { p.raise(highWater(pid)) })
}

// often does something now and after each interval, until it is stopped.
func often(interval time.Duration, do func()) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			do()
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (p *peak) raise(kib int64) {
	for old := p.kib.Load(); kib > old && !p.kib.CompareAndSwap(old, kib); old = p.kib.Load() {
	}
}

// highWater is VmHWM of a process in KiB; 0 if it is gone.
func highWater(pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// measure takes one part.
func (b *bench) measure(dir string, p peer, part part) (sample, error) {
	var s sample
	var before int64
	err := p.prepare(part)
	if err != nil {
		return s, err
	}
	if part.growth {
		before = usage(p.stores())
	}
	if err := syncFS(dir); err != nil { // what was prepared is not written back on the part's time
		return s, err
	}
	p.peak() // from here on
	cpu, err := b.group.cpu()
	if err != nil {
		return s, err
	}
	start := time.Now()
	if err := p.do(part); err != nil {
		return s, err
	}
	s.wall = time.Since(start)
	after, err := b.group.cpu()
	if err != nil {
		return s, err
	}
	s.cpu, s.rssMiB = after-cpu, p.peak()>>10
	if part.growth {
		if err := syncFS(dir); err != nil { // blocks are counted when they are allocated
			return s, err
		}
		s.growthMB = float64(usage(p.stores())-before) / 1e6
	}
	return s, nil
}

// syncFS writes dir's file system to disk.
func syncFS(dir string) error { return tool("sync", "-f", dir) }

// usage is what directories take on disk, in bytes; what vanishes on the way is not counted.
func usage(dirs []string) int64 {
	var total int64
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			fi, err := d.Info()
			if err != nil {
				return nil
			}
			if st, ok := fi.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
				seen[st.Ino] = true
				total += st.Blocks * 512
			}
			return nil
		})
	}
	return total
}

// eventually tries until it works.
func eventually(limit time.Duration, try func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
