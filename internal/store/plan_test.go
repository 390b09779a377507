package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

func putAgedRecord(t testing.TB, s *Store, key string, age time.Duration, r Record) oci.Digest {
	t.Helper()
	k := digest.FromString(key)
	_, err := s.PutRecord(t.Context(), k, r, false)
	must(t, err)
	used := time.Now().Add(-age)
	must(t, os.Chtimes(s.recordPath(k), used, used))
	return k
}

func TestPlanIsWhatPruneDoes(t *testing.T) {
	s := tempStore(t)
	old := putAgedRecord(t, s, "old", 2*time.Hour, Record{Layers: []oci.Digest{putLayer(t, s, "old")}})
	putAgedRecord(t, s, "new", time.Hour, Record{Layers: []oci.Digest{putLayer(t, s, "newer")}})
	putBlob(t, s, "garbage")
	o := PruneOptions{All: true, KeepBytes: 6}
	p, err := s.PlanGC(t.Context(), o)
	must(t, err)
	if len(p.Evict) != 1 || p.Evict[0].ID != string(old) || len(p.Objects) != 2 {
		t.Errorf("plan: %+v", p)
	}
	if want := int64(len("garbage") + len("old")); p.FreedBytes != want || p.LeftBytes != int64(len("newer")) {
		t.Errorf("frees %d, want %d, and leaves %d", p.FreedBytes, want, p.LeftBytes)
	}
	again, err := s.PlanGC(t.Context(), o)
	must(t, err)
	if diff := cmp.Diff(p.Objects, again.Objects); diff != "" {
		t.Error("a plan changed something: " + diff)
	}
	freed, err := s.Prune(t.Context(), o)
	must(t, err)
	if freed != p.FreedBytes {
		t.Errorf("freed %d, planned %d", freed, p.FreedBytes)
	}
	for _, obj := range p.Objects {
		if exists(s.path(object{kind(obj.Kind), obj.ID}.rel())) {
			t.Errorf("%s %s is still there", obj.Kind, obj.ID)
		}
	}
}

func TestOnlyGarbageEvictsNoCache(t *testing.T) {
	s := tempStore(t)
	layer := putLayer(t, s, "cached")
	putAgedRecord(t, s, "key", time.Hour, Record{Layers: []oci.Digest{layer}})
	_, err := s.Prune(t.Context(), PruneOptions{OnlyGarbage: true})
	must(t, err)
	if !hasLayer(t, s, layer) {
		t.Error("cache is gone")
	}
}

func TestRepairRemovesOnlyWhatIsDamaged(t *testing.T) {
	s := tempStore(t)
	bad, good := putBlob(t, s, "bad"), putBlob(t, s, "good")
	must(t, os.Chmod(s.path(blobObject(bad).rel()), 0o644))
	must(t, os.WriteFile(s.path(blobObject(bad).rel()), []byte("BAD"), 0o644))
	must(t, os.Chmod(s.path(blobObject(bad).rel()), 0o444))
	layer := putLayer(t, s, "layer")
	must(t, os.Remove(s.path(layerObject(s.class, s.LayerID(layer)).rel(), metaFile)))
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{good}}}))
	ref := s.refsFolder() + "/" + refFile("app")
	must(t, os.WriteFile(s.path(ref), []byte("{"), 0o644))

	r, err := s.Verify(t.Context(), true)
	must(t, err)
	done, err := s.Repair(t.Context(), r)
	must(t, err)
	if hasBlob(t, s, bad) || hasLayer(t, s, layer) || !hasBlob(t, s, good) || !exists(s.path(ref)) {
		t.Errorf("repair did %+v", done)
	}
	if len(done.Removed) != 2 || len(done.Kept) != 1 || done.Kept[0].Path != ref {
		t.Errorf("repair did %+v", done)
	}
}

func TestRepairLeavesWhatWasReplacedMeanwhile(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "text")
	path := s.path(blobObject(d).rel())
	must(t, os.Chmod(path, 0o644)) // as if it had never been finished
	r, err := s.Verify(t.Context(), false)
	must(t, err)
	keep, err := os.Open(path) // its inode number stays taken
	must(t, err)
	defer keep.Close()
	must(t, os.Remove(path))
	putBlob(t, s, "text")
	_, err = s.Repair(t.Context(), r)
	must(t, err)
	if !hasBlob(t, s, d) {
		t.Error("a sound blob is gone")
	}
}

func TestLocksNameHolderAndPath(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "held")
	b, err := s.Blob(t.Context(), d)
	must(t, err)
	defer b.Close()
	locks, err := s.Locks(t.Context())
	must(t, err)
	want := blobObject(d).rel()
	i := slices.IndexFunc(locks, func(l Lock) bool { return l.Path == want })
	if i < 0 {
		t.Fatalf("locks: %+v", locks)
	}
	if l := locks[i]; l.Exclusive || l.PID != os.Getpid() || l.Command == "" {
		t.Errorf("%+v", l)
	}
}

func TestLimitsOfAPruneAreBuildKits(t *testing.T) {
	const total, free = 100, 20
	for name, c := range map[string]struct {
		o    PruneOptions
		want int64
	}{
		"nothing said":                {PruneOptions{}, 0},
		"reserved":                    {PruneOptions{KeepBytes: 30}, 30},
		"at most":                     {PruneOptions{MaxUsedBytes: 70}, 70},
		"at most what there is":       {PruneOptions{MaxUsedBytes: 300}, total},
		"enough is free":              {PruneOptions{MinFreeBytes: 10}, total},
		"more is to be free":          {PruneOptions{MinFreeBytes: 50}, 70},
		"more than all":               {PruneOptions{MinFreeBytes: 500}, 1},
		"both":                        {PruneOptions{MinFreeBytes: 50, MaxUsedBytes: 60}, 60},
		"never less than is reserved": {PruneOptions{MinFreeBytes: 50, MaxUsedBytes: 60, KeepBytes: 80}, 80},
	} {
		if got := c.o.keep(total, free); got != c.want {
			t.Errorf("%s: keeps %d, want %d", name, got, c.want)
		}
	}
}

func TestPruneFreesTheDisk(t *testing.T) {
	s := tempStore(t)
	empty := diskUsage(t, s.Root())
	cachedBlob(t, s, "blob", 2*mebi, time.Hour, 0)
	ms, err := s.CacheMounts(t.Context(), []CacheMountRequest{{ID: "m"}}, nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(ms[0].Dir(), "file"), make([]byte, 2*mebi), 0o644))
	l, err := publishLayer(t.Context(), s, strings.Repeat("x", 2*mebi))
	must(t, err)
	if took := diskUsage(t, s.Root()) - empty; took < 6*mebi {
		t.Fatalf("it took only %d", took)
	}
	// What is in use stays.
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	if took := diskUsage(t, s.Root()) - empty; took < 4*mebi || took > 5*mebi {
		t.Errorf("a cache mount and a layer are in use, and %d bytes are left", took)
	}
	must(t, l.Close())
	must(t, ms[0].Close())
	var evicted []string
	freed, err := s.Prune(t.Context(), PruneOptions{All: true, Evicted: func(e CacheEntry) { evicted = append(evicted, e.ID) }})
	must(t, err)
	if took := diskUsage(t, s.Root()) - empty; took > mebi/2 || freed < 4*mebi {
		t.Errorf("%d bytes are left, %d are said to be freed", took, freed)
	}
	if len(evicted) != 1 || evicted[0] != "m" {
		t.Errorf("evicted %q", evicted)
	}
}

func TestGarbageIsLeftToWhoIsCollecting(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "garbage")
	unlock, err := s.lockGC(t.Context())
	must(t, err)
	_, err = s.CollectGarbage(t.Context())
	must(t, err)
	if !hasBlob(t, s, d) {
		t.Error("two collect at once")
	}
	unlock()
	_, err = s.CollectGarbage(t.Context())
	must(t, err)
	if hasBlob(t, s, d) {
		t.Error("garbage is still there")
	}
}

// printLocks is den store locks.
func printLocks(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "locks")})
	if err != nil {
		return err
	}
	locks, err := s.Locks(ctx)
	for _, l := range locks {
		fmt.Println(l.Path, l.Exclusive, l.PID > 0)
	}
	return errors.Join(err, s.Close())
}

// The kernel hides the locks of other pid namespaces in /proc/locks.
func TestLocksOfOtherContainersAreSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make namespaces")
	}
	s := tempStore(t)
	d := putBlob(t, s, "held")
	b, err := s.Blob(t.Context(), d)
	must(t, err)
	defer b.Close()
	w, err := s.Work(t.Context(), "k", "key", nil)
	must(t, err)
	defer w.Done()
	free := putBlob(t, s, "free")
	cmd := child(t, "locks", s.Root(), "")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	// The child needs a /proc of its own, as a container has.
	cmd.Args = []string{"sh", "-c", "mount --make-rprivate / && mount -t proc proc /proc && exec \"$0\"", cmd.Path}
	cmd.Path = "/bin/sh"
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("needs mounts of proc: %v: %s", err, stderr(cmd))
	}
	for _, want := range []string{blobObject(d).rel() + " false false", "work/k-key true false", "lock/store false "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q among\n%s", want, out)
		}
	}
	if strings.Contains(string(out), blobObject(free).rel()) {
		t.Error("what nobody holds is listed")
	}
	if !strings.Contains(string(out), "lock/store false true") {
		t.Errorf("not its own:\n%s", out)
	}
}
