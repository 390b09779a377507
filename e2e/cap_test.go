package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// loopDisk gives d a store on a file system of its own, so that what the store takes at any
// moment can be asked of it.
func loopDisk(t *testing.T, d *den, kind, size string) (*den, string) {
	t.Helper()
	needRoot(t)
	image, dir := filepath.Join(d.home, "disk.img"), filepath.Join(d.home, "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"truncate", "-s", size, image},
		{"mkfs." + kind, "-q", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if b, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs a file system on a loop device: %v: %v\n%s", args, err, b)
		}
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	_ = os.Remove(filepath.Join(dir, "lost+found")) // of ext4 only
	d.own(dir)
	return d.with("DEN_STORE=" + filepath.Join(dir, "store")), dir
}

// A gauge looks all the time at what a file system holds beyond its start, against
// a limit and what was reserved just then.
type gauge struct {
	limit       int64
	peak, worst atomic.Int64 // bytes in use; bytes beyond the limit and the reservations
	stop        chan struct{}
	done        sync.WaitGroup
}

func watchDisk(t *testing.T, dir string, limit int64) *gauge {
	t.Helper()
	used := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Error(err)
		}
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	g := &gauge{limit: limit, stop: make(chan struct{})}
	start := used()
	g.done.Go(func() {
		for {
			select {
			case <-g.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			// Before and after: what is written meanwhile was reserved at one of the moments.
			before := reservedIn(filepath.Join(dir, "store"))
			n := used() - start
			after := reservedIn(filepath.Join(dir, "store"))
			g.peak.Store(max(g.peak.Load(), n))
			g.worst.Store(max(g.worst.Load(), n-g.limit-max(before, after)))
		}
	})
	return g
}

func (g *gauge) end() { close(g.stop); g.done.Wait() }

// check says what was seen, once the gauge has ended.
func (g *gauge) check(t *testing.T) {
	t.Helper()
	t.Logf("cap %d MiB, at most %d MiB on the disk", g.limit>>20, g.peak.Load()>>20)
	// Directories and what else the file system needs for itself are no store's bytes.
	if over := g.worst.Load() - g.limit/256; over > 0 {
		t.Errorf("%d bytes beyond the cap and all that was reserved", over)
	}
}

// reservedIn sums what the processes of a store may still write.
func reservedIn(store string) (sum int64) {
	list, _ := filepath.Glob(filepath.Join(store, "reserve", "*"))
	for _, p := range list {
		b, err := os.ReadFile(p)
		if err == nil && len(b) == 8 {
			sum += int64(binary.LittleEndian.Uint64(b))
		}
	}
	return sum
}

func TestCapHoldsWhileStepsWriteGigabytes(t *testing.T) {
	t.Parallel()
	const (
		gib    = 1 << 30
		builds = 12
		lanes  = 2 // at a time: each needs more than a gibibyte for itself
		limit  = 13 * gib / 4
	)
	d, disk := loopDisk(t, newDen(t), "ext4", "16G")
	d = d.with(fmt.Sprint("DEN_STORE_MAX_SIZE=", limit))
	ctx := d.dir(files{"f": "f"})
	for i := range builds {
		d.fill(ctx, files{fmt.Sprintf("Dockerfile.%d", i): fmt.Sprintf(`FROM @small
RUN dd if=/dev/zero of=/shared bs=1M count=32
RUN --mount=type=cache,id=own%d,target=/c dd if=/dev/zero of=/own%[1]d bs=1M count=960 && dd if=/dev/zero of=/c/grown bs=1M count=64
RUN --mount=type=cache,id=own%[1]d,target=/c dd if=/dev/zero bs=1M count=64 >> /c/grown
`, i)})
	}
	gauge := watchDisk(t, disk, limit)
	var wg sync.WaitGroup
	var times sync.Map
	next := make(chan int)
	for range lanes {
		wg.Go(func() {
			for i := range next {
				r := d.try(nil, "build", "--progress=rawjson", "-t", fmt.Sprint("cap:", i), "-f", filepath.Join(ctx, fmt.Sprint("Dockerfile.", i)), ctx)
				if r.code != 0 {
					t.Errorf("build %d: exit %d\n%s", i, r.code, r.err)
					continue
				}
				for _, name := range executed(t, r.err) {
					n, _ := times.LoadOrStore(strings.SplitN(name, "]", 2)[0], new(atomic.Int64))
					n.(*atomic.Int64).Add(1)
				}
				// A named image is kept: without its name it is cache.
				d.try(nil, "rmi", fmt.Sprint("cap:", i))
			}
		})
	}
	for i := range builds {
		next <- i
	}
	close(next)
	wg.Wait()
	gauge.end()
	for step, want := range map[string]int64{"[stage-0 2/4": 1, "[stage-0 3/4": builds, "[stage-0 4/4": builds} {
		n, ok := times.Load(step)
		if !ok || n.(*atomic.Int64).Load() != want {
			t.Errorf("%s was executed %v times, want %d", step, n, want)
		}
	}
	gauge.check(t)
	if gauge.peak.Load() < limit/2 {
		t.Errorf("only %d MiB were ever on the disk: nothing was tried", gauge.peak.Load()>>20)
	}
	// What cannot fit is an error that says why, of a step and of a container alike.
	big := "dd if=/dev/zero of=/big bs=1M count=5000"
	d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM @small\nRUN " + big + "\n"})}, "cap")
	d.fails([]string{"run", "--rm", expand(t, "@small"), "sh", "-c", big}, "cap")
	d.run("store", "verify", "--deep")
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// A program writes zeroes at ten gigabytes per second, and what it needs is there to be had:
// what it wrote the last time is cache.
func TestBurstsBelowTheCapAreHeldAndNotKilled(t *testing.T) {
	t.Parallel()
	const limit = 13 << 28
	d, disk := loopDisk(t, newDen(t), "ext4", "8G")
	d = d.with(fmt.Sprint("DEN_STORE_MAX_SIZE=", limit))
	gauge := watchDisk(t, disk, limit)
	d.run("build", "-q", "-t", "kept", d.dir(files{"Dockerfile": "FROM @small\nRUN dd if=/dev/zero of=/x bs=1M count=1900\n"}))
	for i := range 8 { // at any moment between two looks
		d.run("build", "-q", "-t", "burst", d.dir(files{"Dockerfile": fmt.Sprintf("FROM @small\nRUN usleep %d; dd if=/dev/zero of=/x%d bs=1M count=990\n", 100_000+i*7000, i)}))
		d.run("rmi", "burst")
	}
	gauge.end()
	gauge.check(t)
}

// The command that helps has to work when nothing else does.
func TestFullDiskCanBePruned(t *testing.T) {
	t.Parallel()
	for kind, size := range map[string]string{"ext4": "40M", "xfs": "320M", "btrfs": "130M"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d, disk := loopDisk(t, newDen(t), kind, size)
			d.run("build", "-q", "-t", "old", d.dir(files{"Dockerfile": "FROM @small\nRUN head -c 3000000 /dev/urandom > /x\n"}))
			fill, err := os.Create(filepath.Join(disk, "fill"))
			if err != nil {
				t.Fatal(err)
			}
			defer fill.Close()
			for _, size := range []int{64 << 10, 4 << 10, 1} {
				for b := make([]byte, size); err == nil; {
					_, err = fill.Write(b)
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				err = nil
			}
			if out := d.run("images", "-q", "old"); out == "" {
				t.Error("den does not see its image")
			}
			d.run("prune", "--all", "--force")
			if out := d.run("images", "-q"); out != "" {
				t.Errorf("left: %s", out)
			}
			d.run("store", "verify", "--deep")
			if layers, _ := filepath.Glob(filepath.Join(disk, "store/layers/*/*/*")); len(layers) > 0 {
				t.Errorf("layers are left: %v", layers)
			}
		})
	}
}
