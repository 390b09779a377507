package sentry

import "testing"

func TestLargeHeapIsCollectedAtGosPace(t *testing.T) {
	for live, want := range map[uint64]int{0: smallPercent, smallHeapBytes - 1: smallPercent, smallHeapBytes: largePercent, 1 << 40: largePercent} {
		if got := pacePercent(live); got != want {
			t.Errorf("%d bytes: %d %%, want %d %%", live, got, want)
		}
	}
}
