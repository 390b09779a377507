// Command bench times den's workloads beside the physical floor and BuildKit:
// interleaved in one run, each sample on a fresh ext4 file system (ext4 makes
// files slowly for minutes after many were deleted), results checked. It starts
// the registries, the package mirror and the daemons that it needs on loopback
// and ends them. It needs root, docker-registry, mmdebstrap, apt, curl,
// mkfs.ext4 and, for BuildKit, runc.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// options are the command line's.
type options struct {
	den, cache, buildkit, only string
	rounds                     int
	weak                       bool
}

// A bench is one run of all workloads.
type bench struct {
	dir, den, cache     string
	buildkitd, buildctl string // empty: BuildKit is left out
	registry            string
	mirror              string // of Debian packages
	golang              string // GOROOT
	group               *group
	weak                bool
	weighing            bool // a round that finds out what plainPeer holds, and times nothing
	table               table
}

func main() {
	var o options
	flag.StringVar(&o.den, "den", "bin/den", "the binary to measure")
	flag.IntVar(&o.rounds, "rounds", 3, "samples of each cell")
	flag.StringVar(&o.cache, "cache", "", "directory that keeps the base image, the packages and BuildKit for the next run (default: den-bench in the user's cache directory)")
	flag.StringVar(&o.only, "only", "", "comma-separated workloads (default: all)")
	flag.StringVar(&o.buildkit, "buildkit", os.Getenv("DEN_BENCH_BUILDKIT"), "directory with buildkitd and buildctl, or none (default: "+buildkitVersion+", built once)")
	flag.BoolVar(&o.weak, "weak", false, "measure den in a plain container beside den's privileged rung, in a container and in none, instead of the floor and BuildKit")
	flag.Parse()
	if o.weak {
		o.buildkit = "none"
		if o.only == "" {
			o.only = "W1,W2,W5,run"
		}
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make file systems")
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "den-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, cache: o.cache, weak: o.weak, table: table{cells: map[cell][]sample{}}}
	if b.den, err = filepath.Abs(o.den); err != nil {
		return err
	}
	if b.group, err = newGroup(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.group.remove()) }()
	stop, err := b.setUp(o, chosen)
	defer stop()
	if err != nil {
		return err
	}
	defer func() { fmt.Print(b.markdown()) }() // what there is, also after an error
	for round := range o.rounds {
		for _, w := range chosen {
			if err := b.round(w, round); err != nil {
				return fmt.Errorf("round %d, %s, %w", round+1, w.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d done\n", round+1, o.rounds)
	}
	if !b.weak {
		return nil
	}
	b.weighing = true
	for _, w := range chosen {
		if err := b.sample(w, b.newPlain); err != nil {
			return fmt.Errorf("weigh %s, %w", w.name, err)
		}
	}
	return nil
}

func (b *bench) markdown() string {
	if b.weak {
		return b.table.weakMarkdown()
	}
	return b.table.markdown()
}

// choose picks workloads by name.
func choose(only string) ([]workload, error) {
	all := workloads()
	if only == "" {
		return all, nil
	}
	var chosen []workload
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(all, func(w workload) bool { return w.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no workload %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// round takes one sample of a workload with each peer; who is first changes.
func (b *bench) round(w workload, round int) error {
	peers := []func(string, workload) peer{b.newDen, b.newFloor}
	if b.weak {
		peers = append(peers[:1], b.newNested, b.newPlain)
	}
	if b.buildkitd != "" && !w.noBuildKit {
		peers = append(peers, b.newBuildKit)
	}
	for i := range peers {
		if err := b.sample(w, peers[(i+round)%len(peers)]); err != nil {
			return err
		}
	}
	return nil
}

// sample runs all parts of a workload with one peer on a new file system.
func (b *bench) sample(w workload, newPeer func(string, workload) peer) (err error) {
	fs, unmount, err := b.freshFS()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	p := newPeer(fs, w)
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", p.name(), err)
		}
	}()
	defer p.stop()
	if err := p.start(); err != nil {
		return err
	}
	for _, part := range w.parts {
		if part.change != nil {
			if err := part.change(b.context(w.context)); err != nil {
				return err
			}
		}
		s, err := b.measure(fs, p, part)
		if errors.Is(err, errNone) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		at := cell{w.name + " " + part.name, p.name()}
		if b.weighing {
			b.table.weigh(at, s)
			continue
		}
		b.table.add(at, s)
		fmt.Fprintf(os.Stderr, "bench: %s %s, %s: %.3f s, CPU %.2f s\n", w.name, part.name, p.name(), s.wall.Seconds(), s.cpu.Seconds())
	}
	if w.check == nil {
		return nil
	}
	dir, err := p.result()
	if err == nil {
		err = w.check(b, dir)
	}
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}
