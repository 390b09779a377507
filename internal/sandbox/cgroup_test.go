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
	closed error // what Apply says
}

func (w *weightless) Apply(int) error { return w.closed }

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

// What is started later in a container without a cgroup does not complain of that again.
func TestNobodyJoinsACgroupThatTheFirstProcessIsNotIn(t *testing.T) {
	for _, closed := range []error{nil, errors.New("permission denied")} {
		var said []string
		c := &cgroup{r: &Request{Warn: func(s string) { said = append(said, s) }}, m: &weightless{closed: closed}, rs: &cgroups.Resources{Memory: 1}, controllers: []string{"memory"}}
		c.enter(1)
		if joins := c.joining() != nil; joins != (closed == nil) || (len(said) == 1) != (closed != nil) {
			t.Errorf("%v: joins: %t, said %q", closed, joins, said)
		}
	}
	if (*cgroup)(nil).joining() != nil {
		t.Error("there is none to join")
	}
}
