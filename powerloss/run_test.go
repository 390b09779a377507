package powerloss

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/durable"
)

// A rig uses one store on one disk, and then cuts its power.
type rig struct {
	t      *testing.T
	farm   *farm
	kind   fileSystem
	mode   durable.Mode
	broken string // the step of the protocol that is left out
	engine string
	begin  image
	r      *rand.Rand
}

func newRig(t *testing.T, k fileSystem, mode durable.Mode, broken string) *rig {
	t.Helper()
	need(t, k.mkfs[0])
	seed := uint64(time.Now().UnixNano())
	t.Log("seed ", seed)
	return &rig{t: t, farm: newFarm(t), kind: k, mode: mode, broken: broken,
		engine: t.TempDir(), begin: k.empty(t), r: rand.New(rand.NewPCG(seed, 1))}
}

// start starts a child process; its events go into the log of d.
func (g *rig) start(role string, in task, d *disk) *process {
	g.t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), roleVar+"="+role, "DEN_STORE_BROKEN="+g.broken, "TMPDIR="+g.engine)
	data, err := json.Marshal(in)
	must(g.t, err)
	p := &process{cmd: cmd, heard: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), &p.stdout, &p.stderr
	if role == "checker" {
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	}
	events, eventsOut, err := os.Pipe()
	must(g.t, err)
	acksIn, acks, err := os.Pipe()
	must(g.t, err)
	cmd.ExtraFiles = []*os.File{eventsOut, acksIn}
	must(g.t, cmd.Start())
	must(g.t, eventsOut.Close())
	must(g.t, acksIn.Close())
	go func() {
		defer close(p.heard)
		defer acks.Close()
		defer events.Close()
		for dec := json.NewDecoder(events); ; {
			var e event
			if dec.Decode(&e) != nil {
				return // the end
			}
			p.collecting = p.collecting || e.Op == "collecting"
			d.note(e)
			if _, err := acks.Write([]byte{1}); err != nil {
				return // it was killed
			}
		}
	}()
	return p
}

type process struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	heard          chan struct{} // closed when all that it said is in the log
	collecting     bool
}

func (p *process) wait() error {
	err := p.cmd.Wait()
	<-p.heard
	if err != nil && !strings.Contains(err.Error(), "killed") {
		return fmt.Errorf("%w: %s", err, p.stderr.String())
	}
	return nil
}

// use works on a store for a while, with processes that come and go and are
// killed, and returns what the disk saw.
func (g *rig) use() []entry {
	t := g.t
	t.Helper()
	d := newDisk(g.begin)
	dir, unmount := g.farm.mount(t, g.kind, d)
	if unmount == nil {
		t.Fatal("an empty file system does not mount")
	}
	base := task{Root: filepath.Join(dir, "store"), Engine: g.engine, Mode: g.mode}
	end := time.Now().Add(*workFor)
	var users, all sync.WaitGroup
	for i, name := range []string{"ann", "bob", "collector"} {
		r := rand.New(rand.NewPCG(g.r.Uint64(), uint64(i)))
		users.Go(func() { g.series(base, name, r, d, end) })
	}
	noise := g.start("noise", base, d)
	stop := make(chan struct{})
	if g.mode == durable.Epoch {
		all.Go(func() { watchEpochs(base.Root, d, stop) })
	}
	users.Wait()
	close(stop)
	all.Wait()
	log := d.recorded()
	must(t, noise.cmd.Process.Kill())
	if err := noise.wait(); err != nil {
		t.Errorf("noise: %v", err)
	}
	unmount(t)
	return log
}

// series runs one process after the other; one in three is killed.
func (g *rig) series(base task, name string, r *rand.Rand, d *disk, end time.Time) {
	for run := 1; time.Now().Before(end) && !g.t.Failed(); run++ {
		in, role := base, "worker"
		in.Name, in.Run, in.Ops = name, run, 5+r.IntN(20)
		if name == "collector" {
			role = name
			time.Sleep(time.Duration(r.IntN(int(*workFor / 5))))
		}
		p := g.start(role, in, d)
		if r.IntN(3) == 0 {
			killer := time.AfterFunc(time.Duration(r.IntN(400))*time.Millisecond, func() { _ = p.cmd.Process.Kill() })
			defer killer.Stop()
		}
		if err := p.wait(); err != nil {
			g.t.Errorf("%s: %v", name, err)
		}
		if p.collecting {
			d.note(event{Op: "collected"})
		}
	}
}

// watchEpochs tells the log which publications of a finished epoch became
// durable: those whose marker was made and is gone.
func watchEpochs(root string, d *disk, stop chan struct{}) {
	at, visible := 0, map[string]event{} // by path, of what is visible and not durable
	for {
		log := d.recorded()
		for ; at < len(log); at++ {
			if e := log[at].said; e != nil && (e.Op == "published" || e.Op == "named") {
				visible[e.Rel] = *e
			}
		}
		suspects, err := markers(root)
		if err == nil {
			for rel, e := range visible {
				if !slices.Contains(suspects, rel) {
					d.note(event{Op: "durable", Rel: rel, Version: e.Version})
					delete(visible, rel)
				}
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// markers lists what stands in an epoch that is not over. now comes first,
// since an epoch goes from there to old-* and dead-*.
func markers(root string) ([]string, error) {
	var all []string
	for _, pattern := range []string{"sync/*/now", "sync/*/old-*", "sync/*/dead-*"} {
		dirs, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err // renamed meanwhile: look again
			}
			for _, e := range entries {
				all = append(all, strings.ReplaceAll(e.Name(), "%", "/"))
			}
		}
	}
	return all, nil
}

// after mounts what a power cut left, and says what is wrong there. The log is
// what the disk saw of that.
func (g *rig) after(img image, want expected) (checked, []entry) {
	t := g.t
	t.Helper()
	d := newDisk(img)
	dir, unmount := g.farm.mount(t, g.kind, d)
	if unmount == nil {
		return checked{Unmountable: true}, nil
	}
	// A reboot waits until the old kernel's heartbeat has stood still for a few
	// seconds, each time; here we know that it is dead.
	must(t, os.RemoveAll(filepath.Join(dir, "store/hosts")))
	p := g.start("checker", task{Root: filepath.Join(dir, "store"), Engine: g.engine, Mode: g.mode, Name: "checker", Want: want}, d)
	err := p.wait()
	var c checked
	if err == nil {
		err = json.Unmarshal(p.stdout.Bytes(), &c)
	}
	log := d.recorded()
	unmount(t)
	if err != nil {
		t.Fatalf("checker: %v", err)
	}
	return c, log
}
