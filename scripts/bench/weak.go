package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// An innerPeer is den in a container that den itself, privileged, makes, which costs what "run true" does.
type innerPeer struct {
	denPeer
	called  string
	options []string // of the container
	all     peak
}

// newPlain is den in a container like Docker's plain one: root with 14 capabilities, Docker's
// seccomp profile, no namespaces and no mounts.
func (b *bench) newPlain(fs string, w workload) peer { return b.newInner(fs, w, "plain") }

// newNested is den on its privileged rung, in a container that allows it.
func (b *bench) newNested(fs string, w workload) peer {
	return b.newInner(fs, w, "nested", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined")
}

func (b *bench) newInner(fs string, w workload, name string, options ...string) peer {
	p := &innerPeer{denPeer: denPeer{b: b, fs: fs, w: w}, called: name, options: options}
	p.around = p.container
	return p
}

func (p *innerPeer) name() string { return p.called }

// outerImage is what the container around den is made of: any that has a shell.
const outerImage = "debian"

// container is the command that runs den, with its store, in such a container.
func (p *innerPeer) container(store string, args []string) (env, command []string) {
	b := p.b
	command = append([]string{b.den, "run", "--rm", "--network=host"}, p.options...)
	command = append(command, "-v", p.fs+":"+p.fs, "-v", b.dir+"/ctx:"+b.dir+"/ctx:ro",
		"-v", b.den+":/bin/den:ro", "-e", "DEN_STORE="+store, b.registry+"/"+outerImage, "/bin/den")
	return []string{"DEN_STORE=" + p.outer()}, append(command, args...)
}

// outer is the store of the den that makes the container: on another file system, or what it syncs there would be waited for.
func (p *innerPeer) outer() string { return filepath.Join(p.b.dir, "outer") }

func (p *innerPeer) start() error {
	for _, dir := range p.stores() { // the volumes of the container
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := p.b.group.run(p.fs, []string{"DEN_STORE=" + p.outer()}, p.b.den, "pull", "-q", p.b.registry+"/"+outerImage); err != nil {
		return err
	}
	return p.denPeer.start()
}

// do weighs in a round of its own: who reads the mappings of a process holds up its page
// faults, and a sentry lives on these.
func (p *innerPeer) do(part part) error {
	if !p.b.weighing {
		return p.denPeer.do(part)
	}
	stop := p.b.group.weigh(&p.all)
	defer stop()
	return p.denPeer.do(part)
}

// peak is, instead of the largest process, what all of them hold together: the den inside, its
// sentries and gofers, and the payloads' memory.
func (p *innerPeer) peak() int64 { return p.all.kib.Swap(0) }

// weigh looks at what the group holds until it is stopped.
func (g *group) weigh(most *peak) (stop func()) {
	return often(50*time.Millisecond, func() { most.raise(g.shares()) })
}

// shares adds up the proportional set sizes of all processes of the group, in KiB.
func (g *group) shares() (kib int64) {
	_ = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // groups come and go
		}
		pids, _ := os.ReadFile(path)
		for pid := range strings.FieldsSeq(string(pids)) {
			rollup, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup")
			for line := range strings.Lines(string(rollup)) {
				if v, ok := strings.CutPrefix(line, "Pss:"); ok {
					n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
					kib += n
				}
			}
		}
		return nil
	})
	return kib
}

// kanikoSeconds is kaniko (osscontainertools, commit 6bcc9344) alone in a container, with these
// workloads, on a machine of 2 cores, 20 November 2026: its module is not to be had from
// the Go proxy, so it is not measured again. Ratios to it say little on another machine.
var kanikoSeconds = map[string]float64{"W1 cold": 8.04, "W1 unchanged": 0.26, "W2 cold": 7.08, "W2 unchanged": 2.63, "W2 one changed": 8.81, "W5 cold": 7.20}

// weakMarkdown compares den in a plain container with den's privileged rung: in a container, too, and in none.
func (t *table) weakMarkdown() string {
	var b strings.Builder
	b.WriteString("| workload | privileged s (CPU) | nested s (CPU) | plain s (CPU) | range s | all of it MiB | plain/nested wall, CPU | plain/privileged wall, CPU | plain - nested ms | kaniko s | kaniko/plain |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range t.rows {
		d, n, p := t.cells[cell{row, "den"}], t.cells[cell{row, "nested"}], t.cells[cell{row, "plain"}]
		more, k, faster := "", "", ""
		if len(n) > 0 && len(p) > 0 {
			more = fmt.Sprintf("%.0f", 1000*(median(p, wallSeconds)-median(n, wallSeconds)))
		}
		if s := kanikoSeconds[row]; s > 0 && len(p) > 0 {
			k, faster = fmt.Sprintf("%.2f", s), fmt.Sprintf("%.1f", s/median(p, wallSeconds))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", row, times(d), times(n), times(p), spread(p), memory(p), both(p, n), both(p, d), more, k, faster)
	}
	return b.String()
}
