//go:build stress

package store

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

var stressFor = flag.Duration("stress", time.Minute, "how long the stress test lasts")

// idShift is where the ids of nested user namespaces begin.
const idShift = 100000

// A stress is one run: many processes on one store, each killed at random.
type stress struct {
	root    string // the store
	shifted string // the same through an idmapped mount, or empty
	exe     string // this binary, where every uid may run it
	base    string // for engines; every uid may write
	lasts   time.Duration
	broken  string // the step of the protocol that is left out

	kills, nested, idmapped atomic.Int64
	mu                      sync.Mutex
	violations              []string
}

func (x *stress) violation(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.violations = append(x.violations, fmt.Sprintf(format, args...))
}

func (x *stress) violated() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.violations) > 0
}

// run has the processes work and die until the time is over, or stops at the
// first violation.
func (x *stress) run(t *testing.T) {
	checker := openStore(t, x.root, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), x.lasts)
	defer cancel()
	var wg sync.WaitGroup
	for i, role := range []string{"user", "user", "user", "keeper", "keeper", "collector", "collector"} {
		wg.Go(func() {
			for ctx.Err() == nil && !x.violated() {
				x.process(t, role, fmt.Sprint("slot", i))
			}
		})
	}
	for ctx.Err() == nil && !x.violated() {
		x.check(checker)
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	x.atEnd(t, checker)
	t.Logf("%d kills, %d processes in namespaces of their own, %d behind an idmapped mount; %d violations",
		x.kills.Load(), x.nested.Load(), x.idmapped.Load(), len(x.violations))
}

// atEnd looks at the store once everybody is dead.
func (x *stress) atEnd(t *testing.T, s *Store) {
	r, err := s.Verify(t.Context(), true)
	must(t, err)
	for _, p := range r.Problems {
		x.violation("I1, I2: at the end: %s %s", p.Path, p.What)
	}
	for _, d := range r.Dangling {
		x.violation("I4: at the end: %s", d)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{OnlyGarbage: true}); err != nil {
		x.violation("collect at the end: %v", err)
	}
	if r, err = s.Verify(t.Context(), false); err != nil {
		x.violation("verify at the end: %v", err)
	}
	for _, left := range r.Leftovers {
		if !strings.HasPrefix(left, "ingest/") { // waits for its next try
			x.violation("left over: %s", left)
		}
	}
}

// check looks as somebody who holds nothing: I4, that a record that is there
// before and after names nothing that is gone in between, its closure included.
func (x *stress) check(s *Store) {
	for i := range 3 {
		path := s.recordPath(digest.FromString(fmt.Sprint("record", i)))
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		var r Record
		if err := json.NewDecoder(f).Decode(&r); err != nil {
			x.violation("I1: record %d: %v", i, err)
		}
		gone := ""
		for _, d := range r.Blobs {
			if !exists(s.path(blobObject(d).rel())) {
				gone = string(d)
			}
		}
		rule := "I4"
		for _, d := range r.Layers {
			switch layersGone(s, string(d)) {
			case "":
			case belowGone:
				rule, gone = "I4, I5", "a tree below "+string(d)
			default:
				gone = string(d)
			}
		}
		if same, err := sys.SameInode(f, path); gone != "" && same && err == nil {
			x.violation("%s: record %d names %s, which is gone", rule, i, gone)
		}
		f.Close()
	}
}

const belowGone = "a tree below is gone"

// layersGone is empty when some class has the layer with all its trees.
func layersGone(s *Store, diffID string) string {
	classes, err := s.classes()
	if err != nil {
		return err.Error()
	}
	gone := "no class has it"
	for _, class := range classes {
		wrapper := s.path(layerObject(class, layerID(class, digest.Digest(diffID))).rel())
		if !exists(wrapper) {
			continue
		}
		meta, err := readMeta(wrapper)
		if err != nil {
			continue
		}
		whole := true
		for _, d := range meta.Over {
			whole = whole && exists(s.path(layerObject(class, layerID(class, d)).rel()))
		}
		if whole {
			return ""
		}
		gone = belowGone
	}
	return gone
}

// process runs one child for up to 150 ms. It must not end by itself.
func (x *stress) process(t *testing.T, role, slot string) {
	root := x.root
	attr := &syscall.SysProcAttr{}
	kind := rand.IntN(4)
	if os.Geteuid() == 0 && kind >= 2 {
		attr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
		if kind == 3 {
			attr.Cloneflags |= syscall.CLONE_NEWUSER
			shift := 0
			if x.shifted != "" && rand.IntN(2) == 0 {
				root, shift = x.shifted, idShift
				x.idmapped.Add(1)
			}
			ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 65536}}
			attr.UidMappings, attr.GidMappings = ids, ids
			attr.Credential = &syscall.Credential{}
			slot += fmt.Sprint("-", shift)
		} else {
			slot += "-pid"
		}
		x.nested.Add(1)
	}
	engine := filepath.Join(x.base, slot)
	if err := os.MkdirAll(engine, 0o777); err != nil || os.Chmod(engine, 0o777) != nil {
		t.Error(err)
		return
	}
	cmd := exec.Command(x.exe)
	cmd.Env = append(os.Environ(), "DEN_TEST_CHILD=stress", "DEN_TEST_ROOT="+root, "DEN_TEST_ROLE="+role,
		"DEN_TEST_SLOT="+slot, "DEN_TEST_ENGINE="+engine, "DEN_STORE_BROKEN="+x.broken, "DEN_FAILPOINTS="+jitter(t, x.broken))
	out := &strings.Builder{}
	cmd.Stderr, cmd.SysProcAttr = out, attr
	if err := cmd.Start(); err != nil {
		t.Errorf("start: %v", err)
		return
	}
	kill := time.AfterFunc(time.Duration(5+rand.IntN(145))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if kill.Stop() && !killed(cmd) {
		x.violation("%s in %s ended by itself: %v: %s", role, slot, err, out)
		return
	}
	if out.Len() > 0 && strings.Contains(out.String(), "panic") {
		x.violation("%s: %s", role, out)
	}
	x.kills.Add(1)
}

// killed reports whether it was a kill that ended a process, at a point of its own.
func killed(cmd *exec.Cmd) bool {
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// rare are the points where something must happen for a broken protocol to be
// seen broken soon.
func rare(broken string) string {
	switch broken {
	case "laterescue":
		return ",store.gc.marked=linger,store.publish.done=" + []string{"linger", "kill"}[rand.IntN(2)]
	case "twogc":
		return ",store.gc.marked=linger"
	}
	return ""
}

// jitter makes every point of the protocol wait now and then, and one for long.
func jitter(t *testing.T, broken string) string {
	points := failpoints(t)
	long := points[rand.IntN(len(points))]
	if broken == "" && rand.IntN(3) == 0 {
		broken = "laterescue" // the protocol stands what finds its variants
	}
	return strings.Join(points, "=jitter,") + "=jitter," + long + "=linger" + rare(broken)
}

// newStress puts the parts of a run where every uid can reach them.
func newStress(t *testing.T, dir string, lasts time.Duration) *stress {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "den-stress-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(base)) })
	must(t, os.Chmod(base, 0o777))
	exe := filepath.Join(base, "store.test")
	must(t, copyFile(os.Args[0], exe))
	if dir == "" {
		dir = filepath.Join(base, "disk")
		must(t, os.Mkdir(dir, 0o755))
	}
	x := &stress{root: filepath.Join(dir, "store"), exe: exe, base: base, lasts: lasts}
	must(t, os.Mkdir(x.root, 0o755))
	if os.Geteuid() == 0 {
		if x.shifted, err = idmap(t, x.root, filepath.Join(base, "shifted")); err != nil {
			t.Logf("without idmapped mounts: %v", err)
		}
	}
	return x
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// idmap mounts dir at to, with every id shifted by idShift.
func idmap(t *testing.T, dir, to string) (string, error) {
	holder := exec.Command("sleep", "3600")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: idShift, Size: 65536}}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := holder.Start(); err != nil {
		return "", err
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	ns, err := os.Open("/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/user")
	if err != nil {
		return "", err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return "", err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move_mount: %w", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(to, unix.MNT_DETACH)) })
	return to, nil
}

// disk mounts a fresh file system of the kind and returns its directory.
func disk(t *testing.T, kind string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: to mount %s", kind)
	}
	dir, err := os.MkdirTemp("/tmp", "den-disk-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	if kind == "tmpfs" {
		if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=256m,mode=755"); err != nil {
			t.Skipf("needs mounts: %v", err)
		}
	} else {
		image := filepath.Join(dir, "image")
		must(t, os.WriteFile(image, nil, 0o644))
		must(t, os.Truncate(image, 512<<20))
		if out, err := exec.Command("mkfs."+kind, "-q", image).CombinedOutput(); err != nil {
			t.Skipf("needs mkfs.%s: %v: %s", kind, err, out)
		}
		if out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
			t.Skipf("needs %s on a loop device: %v: %s", kind, err, out)
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(mnt, unix.MNT_DETACH)) })
	return mnt
}

// Many processes use, name, run, remove and collect on one store, in any
// namespaces, and are killed at any moment. No invariant is ever broken.
func TestStressNothingCorrupts(t *testing.T) {
	kinds := []string{"tmpfs", "ext4", "xfs", "btrfs"}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			x := newStress(t, disk(t, kind), *stressFor/time.Duration(len(kinds)))
			x.run(t)
			for _, v := range x.violations {
				t.Error(v)
			}
		})
	}
}

// The same with one step of the protocol left out: if the run does not notice,
// it proves nothing.
func TestStressFindsEveryBrokenProtocol(t *testing.T) {
	for _, step := range []string{"norescue", "laterescue", "norecheck", "markfirst", "nocondemn", "twogc"} {
		t.Run(step, func(t *testing.T) {
			x := newStress(t, disk(t, "tmpfs"), 3*time.Minute) // most take seconds
			x.broken = step
			begin := time.Now()
			x.run(t)
			if len(x.violations) == 0 {
				t.Fatal("the protocol without this step was not found broken")
			}
			t.Logf("found after %v: %s", time.Since(begin).Round(10*time.Millisecond), x.violations[0])
			if !regexp.MustCompile(`\bI[3-6]\b`).MatchString(strings.Join(x.violations, "\n")) {
				t.Error("it failed, but not because an object in use or named was removed")
			}
		})
	}
}
