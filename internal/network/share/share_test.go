package share

import "testing"

// take takes as many as k gets.
func take(s *Slots[string], k string) int {
	n := 0
	for s.Take(k) {
		n++
	}
	return n
}

func TestNobodyTakesAll(t *testing.T) {
	s := New[string](100)
	if n := take(s, "greedy"); n != 50 {
		t.Errorf("one alone has %d of 100, want half", n)
	}
	for _, k := range []string{"second", "third", "fourth"} {
		if take(s, k) == 0 {
			t.Errorf("nothing is left for the %s", k)
		}
	}
	if s.Take("greedy") {
		t.Error("who has most gets more")
	}
}

func TestWhatIsGivenBackIsLentAgain(t *testing.T) {
	s := New[string](10)
	for range 3 {
		n := take(s, "a")
		if n != 5 {
			t.Errorf("%d of 10, want 5", n)
		}
		for range n {
			s.Give("a")
		}
	}
	if s.free != 10 || len(s.taken) != 0 {
		t.Errorf("%d are free, %v are taken", s.free, s.taken)
	}
}
