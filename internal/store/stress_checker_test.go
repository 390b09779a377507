//go:build stress

package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// Each invariant is broken on purpose, and the checker says which.
func TestStressCheckerKnowsEveryInvariant(t *testing.T) {
	for rule, breakIt := range map[string]func(*testing.T, *stress, *job) error{
		"I1": breakPublication, "I2": breakContent, "I3": breakLease, "I4": breakNamed,
		"I5": breakClosure, "I6": breakLease, "I7": breakLock, "I8": breakMiss,
	} {
		t.Run(rule, func(t *testing.T) {
			s := tempStore(t)
			x := &stress{root: s.Root()}
			err := breakIt(t, x, &job{s, "me"})
			said := fmt.Sprint(err, x.violations)
			if !strings.Contains(said, rule) {
				t.Errorf("the checker says %s", said)
			}
		})
	}
}

// breakPublication makes half of a blob visible.
func breakPublication(t *testing.T, x *stress, j *job) error {
	path := j.store.path(blobObject(digest.FromString("whole")).rel())
	must(t, os.WriteFile(path, []byte("who"), 0o444))
	x.atEnd(t, j.store)
	return os.Remove(path)
}

// leased is layer 1, which lies over layer 0.
func leased(t *testing.T, j *job) *Layer {
	l, err := j.takeLayer(t.Context(), 1)
	must(t, err)
	must(t, holds(l, 1))
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

// breakContent changes a tree.
func breakContent(t *testing.T, _ *stress, j *job) error {
	l := leased(t, j)
	must(t, os.WriteFile(filepath.Join(l.Dirs()[1], "file"), []byte("else"), 0o644))
	return holds(l, 1)
}

// breakLease moves away what is leased and puts the same in its place.
func breakLease(t *testing.T, _ *stress, j *job) error {
	l := leased(t, j)
	wrapper := filepath.Dir(l.Dirs()[0])
	must(t, os.Rename(wrapper, j.store.path("trash", "x")))
	must(t, os.CopyFS(wrapper, os.DirFS(j.store.path("trash", "x"))))
	return holds(l, 1)
}

// record0 names layer 1.
func record0(t *testing.T, j *job) *Layer {
	l := leased(t, j)
	_, err := j.store.PutRecord(t.Context(), digest.FromString("record0"), Record{Layers: []oci.Digest{l.DiffID()}}, false)
	must(t, err)
	return l
}

// breakNamed removes what a record names.
func breakNamed(t *testing.T, x *stress, j *job) error {
	l := record0(t, j)
	must(t, os.RemoveAll(filepath.Dir(l.Dirs()[0])))
	x.check(j.store)
	return nil
}

// breakClosure removes what is below what a record names.
func breakClosure(t *testing.T, x *stress, j *job) error {
	l := record0(t, j)
	must(t, os.RemoveAll(filepath.Dir(l.Dirs()[1])))
	x.check(j.store)
	return nil
}

// breakLock lets somebody else in, whose process id is the same.
func breakLock(t *testing.T, _ *stress, j *job) error {
	path := filepath.Join(t.TempDir(), "tree")
	must(t, os.Symlink("/dev/null", path)) // what we write is not what is there
	return alone(path, j.slot)
}

// breakMiss makes a layer neither there nor missing.
func breakMiss(t *testing.T, _ *stress, j *job) error {
	l := leased(t, j)
	shard := filepath.Dir(filepath.Dir(l.Dirs()[0]))
	j.store.leases = map[string]*lease{} // as another process
	must(t, os.Rename(shard, shard+"-away"))
	must(t, os.WriteFile(shard, nil, 0o644))
	_, err := j.takeLayer(t.Context(), 1)
	return err
}
