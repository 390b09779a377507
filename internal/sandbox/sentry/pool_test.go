package sentry

import "testing"

func TestPoolKeepsTwoOnlyForThoseWhoComeTooEarly(t *testing.T) {
	one, two := []*child{{}}, []*child{{}, {}}
	for name, c := range map[string]struct {
		p    *pool
		want int
	}{
		"the first sandbox":             {&pool{starts: 1, network: "host"}, 0},
		"the second":                    {&pool{starts: minStarts, network: "host"}, 1},
		"one waits":                     {&pool{starts: 9, network: "host", waiting: one}, 0},
		"it was not ready when taken":   {&pool{starts: 9, network: "host", late: true}, 2},
		"nor was it, but another waits": {&pool{starts: 9, network: "host", late: true, waiting: one}, 1},
		"two wait":                      {&pool{starts: 9, network: "host", late: true, waiting: two}, 0},
		"two wait and are ready":        {&pool{starts: 9, network: "host", waiting: two}, -1},
		"with another network":          {&pool{starts: 9, network: "none", waiting: two}, 1},
		"somebody fills it":             {&pool{starts: 9, network: "host", filling: true}, 0},
		"it is closed":                  {&pool{starts: 9, network: "host", closed: true}, 0},
	} {
		if got := c.p.missing("host"); got != c.want {
			t.Errorf("%s: %d are missing, want %d", name, got, c.want)
		}
	}
}

func TestChildHasSpokenWhenThereIsSomethingToRead(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	c := child{control: ours}
	if c.hasSpoken() {
		t.Error("a silent child has spoken")
	}
	if _, err := theirs.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if !c.hasSpoken() {
		t.Error("a child that spoke has not")
	}
}
