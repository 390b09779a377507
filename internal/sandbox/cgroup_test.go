package sandbox

import (
	"errors"
	"testing"

	"github.com/opencontainers/cgroups"
)

// weightless is a cgroup of a kernel that knows no weights of block devices.
type weightless struct {
	cgroupManager
	memory int64
}

func (w *weightless) Set(r *cgroups.Resources) error {
	if r.BlkioWeight != 0 {
		return errors.New("no such file")
	}
	w.memory = r.Memory
	return nil
}

func TestAWeightThatCannotBeCostsNoOtherLimit(t *testing.T) {
	w := &weightless{}
	var said error
	if err := setAll(w, &cgroups.Resources{Memory: 1 << 20, BlkioWeight: 100}, func(err error) { said = err }); err != nil {
		t.Error(err)
	}
	if w.memory != 1<<20 || said == nil {
		t.Errorf("memory is bounded to %d, %v", w.memory, said)
	}
	said = nil
	if err := setAll(w, &cgroups.Resources{Memory: 2 << 20}, func(err error) { said = err }); err != nil || said != nil || w.memory != 2<<20 {
		t.Errorf("%v, %v, %d", err, said, w.memory)
	}
}
