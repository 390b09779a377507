package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// abandon leaves a container as a den that was killed does.
func (r *rig) abandon(rec record) {
	r.t.Helper()
	dir, err := r.Store.NewContainer(r.t.Context(), rec.ID)
	if err == nil {
		err = errors.Join(r.Store.NameContainer(r.t.Context(), rec.Name, rec.ID), rec.write(dir.Path()), dir.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestNameOfAKilledContainerThatWasToRemoveItselfIsFree(t *testing.T) {
	r := newRig(t)
	id := strings.Repeat("a", 64)
	r.abandon(record{ID: id, Name: "c", State: stateRunning, Remove: true})
	r.mustRun(RunRequest{Name: "c"})
	if _, err := r.Store.OpenContainer(id); !errdefs.IsNotFound(err) {
		t.Errorf("the killed one is still there: %v", err)
	}
}

func TestKilledContainersAreDeadOrGone(t *testing.T) {
	r := newRig(t)
	r.abandon(record{ID: strings.Repeat("a", 64), Name: "dead", State: stateRunning})
	r.abandon(record{ID: strings.Repeat("b", 64), Name: "gone", State: stateRunning, Remove: true})
	empty, err := r.Store.NewContainer(t.Context(), strings.Repeat("c", 64)) // it died before it wrote a record
	if err := errors.Join(err, empty.Close()); err != nil {
		t.Fatal(err)
	}
	torn, err := r.Store.NewContainer(t.Context(), strings.Repeat("d", 64)) // the machine died
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(torn.Path(), recordFile), nil, 0o600), torn.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"dead", ""}, r.names()); d != "" {
		t.Error(d)
	}
	c, err := r.Inspect("dead")
	if err != nil || c.Status != "dead" || c.ExitCode != 137 || c.Running() {
		t.Errorf("container is %+v, %v", c, err)
	}
	if code, err := r.waitCode(t.Context(), "dead"); err == nil && code != 137 {
		t.Errorf("wait gives %d", code)
	}
	removed, err := r.Prune(func(*Summary) bool { return false })
	if err != nil || len(removed) != 2 {
		t.Errorf("pruned %q, %v", removed, err)
	}
	if left := r.names(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestRemovingDoesNotFreeANameThatAnotherHas(t *testing.T) {
	r := newRig(t)
	old, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	r.abandon(record{ID: old, Name: "c", State: stateExited})
	if err := r.Store.UnnameContainer("c"); err != nil { // and then it died
		t.Fatal(err)
	}
	r.abandon(record{ID: other, Name: "c", State: stateExited})
	if err := r.Remove(t.Context(), old, RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if cid, err := r.Store.ContainerByName("c"); cid != other || err != nil {
		t.Errorf("c is %s, %v", cid, err)
	}
}
