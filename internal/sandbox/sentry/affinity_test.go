package sentry

import (
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestChoicesOfProcessors(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0-2,5": {0, 1, 2, 5}, " 1 , 3-3": {1, 3}, "1023": {1023}} {
		got, err := parseProcessors(list)
		if err != nil || got.Count() != len(want) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
		for _, n := range want {
			if !got.IsSet(n) {
				t.Errorf("%q: %d is missing", list, n)
			}
		}
	}
	for _, list := range []string{"", "-1", "1-", "3-1", "x", "0-99999999999", "1024", "0,,1"} {
		if _, err := parseProcessors(list); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", list, err)
		}
	}
	absent := unix.CPUSet{}
	absent.Set(maxProcessors - 1)
	if err := keepTo(unix.Getpid(), &absent); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a processor that is not there: %v", err)
	}
}

func FuzzProcessors(f *testing.F) {
	f.Add("0-3,7")
	f.Fuzz(func(t *testing.T, list string) {
		if set, err := parseProcessors(list); err == nil && set.Count() == 0 {
			t.Errorf("%q is no processor", list)
		}
	})
}
