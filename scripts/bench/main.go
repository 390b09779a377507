// Command bench times den's workloads beside the physical floor and, where they
// are installed, BuildKit: interleaved, each sample on a fresh ext4 file system
// (ext4 makes files slowly for minutes after many were deleted), results
// checked. It needs root, docker-registry, mmdebstrap and mkfs.ext4.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A bench is one run of all workloads.
type bench struct {
	dir, den            string
	buildkitd, buildctl string // empty: BuildKit is left out
	registry            string
	samples             map[string][]sample // by "workload peer"
	order               []string
}

// A sample is one measured command.
type sample struct {
	wall, cpu time.Duration
	rssMiB    int64
}

func main() {
	den := flag.String("den", "bin/den", "the binary to measure")
	rounds := flag.Int("rounds", 3, "samples of each cell")
	base := flag.String("base", "", "tar of a Debian root file system (default: made by mmdebstrap)")
	only := flag.String("only", "", "comma-separated workloads (default: all)")
	buildkit := flag.String("buildkit", os.Getenv("DEN_BENCH_BUILDKIT"), "directory with buildkitd and buildctl")
	flag.Parse()
	if err := run(*den, *base, *buildkit, *only, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(den, base, buildkit, only string, rounds int) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make file systems")
	}
	dir, err := os.MkdirTemp("", "den-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, samples: map[string][]sample{}}
	if b.den, err = filepath.Abs(den); err != nil {
		return err
	}
	if buildkit != "" {
		b.buildkitd, b.buildctl = filepath.Join(buildkit, "buildkitd"), filepath.Join(buildkit, "buildctl")
	}
	stop, err := b.setUp(base)
	if err != nil {
		return err
	}
	defer stop()
	for round := range rounds {
		for _, w := range workloads() {
			if only != "" && !slices.Contains(strings.Split(only, ","), w.name) {
				continue
			}
			for _, p := range b.peers() {
				if err := b.sampleOf(w, p); err != nil {
					return fmt.Errorf("round %d, %s, %s: %w", round+1, w.name, p.name, err)
				}
			}
		}
	}
	b.print()
	return nil
}

// add keeps a sample under the workload's part and the peer.
func (b *bench) add(part, peer string, s sample) {
	if !slices.Contains(b.order, part) {
		b.order = append(b.order, part)
	}
	key := part + " " + peer
	b.samples[key] = append(b.samples[key], s)
}

// measure runs a command in dir and takes its own time and memory, children
// that it waited for included.
func measure(dir string, env []string, args ...string) (sample, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	s := sample{wall: time.Since(start)}
	if err != nil {
		return s, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.rssMiB = u.Maxrss >> 10
	}
	return s, nil
}

// median of the walls; the CPU time and memory shown are that sample's.
func median(list []sample) sample {
	slices.SortFunc(list, func(a, b sample) int { return cmp.Compare(a.wall, b.wall) })
	return list[len(list)/2]
}

func (b *bench) print() {
	fmt.Printf("%-16s %10s %8s %9s %10s %10s %9s %9s\n", "workload", "den s", "cpu s", "rss MiB", "floor s", "buildkit s", "den/floor", "den/bk")
	for _, part := range b.order {
		d := b.samples[part+" den"]
		if len(d) == 0 {
			continue
		}
		m := median(d)
		fmt.Printf("%-16s %10.3f %8.2f %9d", part, m.wall.Seconds(), m.cpu.Seconds(), m.rssMiB)
		ratios := ""
		for _, peer := range []string{"floor", "buildkit"} {
			list := b.samples[part+" "+peer]
			if len(list) == 0 {
				fmt.Printf(" %10s", "-")
				ratios += fmt.Sprintf(" %9s", "-")
				continue
			}
			p := median(list)
			fmt.Printf(" %10.3f", p.wall.Seconds())
			ratios += fmt.Sprintf(" %9.2f", m.wall.Seconds()/p.wall.Seconds())
		}
		fmt.Println(ratios)
	}
}
