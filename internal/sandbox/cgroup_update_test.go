package sandbox

import (
	"errors"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A cgroup that is made after the end would stay for ever: nobody looks for it.
func TestLimitsThatComeWithTheEndMakeNoCgroup(t *testing.T) {
	asked := false
	n := &Namespaces{cgroupVersion: func() int { asked = true; return 0 }}
	s := &running{id: "x", n: n, pid: os.Getpid(), holder: os.Getppid(), stubs: &stubs{}, pipes: &pipes{}} // its process is still seen
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	asked = false
	bytes := int64(1 << 30)
	err := s.SetLimits(t.Context(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}})
	if !errors.Is(err, os.ErrProcessDone) || asked {
		t.Errorf("limits after the end: %v", err)
	}
}
