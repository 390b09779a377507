package solver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/progress"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func mustSolve(t *testing.T, cache Cache, l *trail, target *toy) string {
	t.Helper()
	out, err := solveToy(t, cache, l, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSecondBuildExecutesNothing(t *testing.T) {
	base := &toy{name: "base", source: true}
	run := &toy{name: "run", inputs: []*toy{base}}
	last := &toy{name: "last", inputs: []*toy{run}}
	cache, l := newMemCache(), &trail{}
	first := mustSolve(t, cache, l, last)
	want(t, "first build", l.take(), []string{"base", "last", "run"})
	second := mustSolve(t, cache, l, last)
	want(t, "second build", l.take(), []string(nil))
	want(t, "results", second, first)
}

func TestUnusedContentInvalidatesNothing(t *testing.T) {
	files := &toy{name: "context", source: true, key: "1", make: func(context.Context, []string) (string, error) { return "used:a unused:b", nil }}
	used := func(s string) string { return strings.Fields(s)[0] }
	cp := &toy{name: "copy", inputs: []*toy{files}, content: used, make: func(_ context.Context, in []string) (string, error) { return used(in[0]), nil }}
	run := &toy{name: "run", inputs: []*toy{cp}}
	cache, l := newMemCache(), &trail{}
	mustSolve(t, cache, l, run)
	l.take()

	files.key, files.make = "2", func(context.Context, []string) (string, error) { return "used:a unused:c", nil }
	mustSolve(t, cache, l, run)
	want(t, "unused file changed", l.take(), []string{"context"})
	mustSolve(t, cache, l, run)
	want(t, "the new definition keys were recorded", l.take(), []string(nil))

	files.key, files.make = "3", func(context.Context, []string) (string, error) { return "used:z", nil }
	mustSolve(t, cache, l, run)
	want(t, "used file changed", l.take(), []string{"context", "copy", "run"})
}

func TestSameResultOfAnotherDefinitionCutsOff(t *testing.T) {
	same := func(context.Context, []string) (string, error) { return "same", nil }
	gen := &toy{name: "gen", make: same}
	run := &toy{name: "run", inputs: []*toy{gen}}
	cache, l := newMemCache(), &trail{}
	mustSolve(t, cache, l, run)
	l.take()
	gen.key = "written differently"
	mustSolve(t, cache, l, run)
	want(t, "executed", l.take(), []string{"gen"})
}

func TestIgnoreCacheExecutesAndOverwrites(t *testing.T) {
	n := "1"
	step := &toy{name: "step", make: func(context.Context, []string) (string, error) { return "step" + n, nil }}
	next := &toy{name: "next", inputs: []*toy{step}}
	cache, l := newMemCache(), &trail{}
	mustSolve(t, cache, l, next)
	l.take()

	step.ignore = true
	mustSolve(t, cache, l, next)
	want(t, "same result: the consumer hits by content", l.take(), []string{"step"})

	n = "2"
	out := mustSolve(t, cache, l, next)
	want(t, "other result", l.take(), []string{"next", "step"})

	step.ignore = false
	want(t, "result after", mustSolve(t, cache, l, next), out)
	want(t, "the new results took the records over", l.take(), []string(nil))
}

func TestEqualVerticesAreSolvedOnce(t *testing.T) {
	mk := func() *toy { return &toy{name: "shared"} }
	all := &toy{name: "all", inputs: []*toy{mk(), {name: "other", inputs: []*toy{mk()}}}}
	l := &trail{}
	mustSolve(t, newMemCache(), l, all)
	want(t, "executed", l.take(), []string{"all", "other", "shared"})
}

func TestFailureIsAttributedAndNotRecorded(t *testing.T) {
	broken := errors.New("exit code: 3")
	base := &toy{name: "base"}
	bad := &toy{name: "bad", inputs: []*toy{base}, make: func(context.Context, []string) (string, error) { return "", broken }}
	top := &toy{name: "top", inputs: []*toy{bad}}
	cache, l := newMemCache(), &trail{}
	var ve *bkerrdefs.VertexError
	for range 2 {
		_, err := solveToy(t, cache, l, top, nil)
		if !errors.Is(err, broken) || !errors.As(err, &ve) {
			t.Fatalf("error is %v", err)
		}
		want(t, "vertex", oci.Digest(ve.Digest), digest.FromString("vertex bad"))
	}
	want(t, "executed", l.take(), []string{"bad", "bad", "base"})
}

func TestFailureOfOneBranchCancelsTheOther(t *testing.T) {
	ended := make(chan error, 1)
	begun := make(chan struct{})
	slow := &toy{name: "slow", make: func(ctx context.Context, _ []string) (string, error) {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}}
	bad := &toy{name: "bad", make: func(context.Context, []string) (string, error) {
		<-begun
		return "", errors.New("broken")
	}}
	_, err := solveToy(t, newMemCache(), &trail{}, &toy{name: "both", inputs: []*toy{slow, bad}}, nil)
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error is %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the other branch ended with %v", err)
	}
}

func TestSecondProcessAdoptsFirstResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		step := &toy{name: "step", make: func(context.Context, []string) (string, error) {
			<-release
			return "made", nil
		}}
		cache, l := newMemCache(), &trail{}
		var wg sync.WaitGroup
		var waits sync.Map
		for range 2 {
			wg.Go(func() {
				out, err := solveToy(t, cache, l, step, progress.Func(func(e progress.Event) {
					if e.Status != nil {
						waits.Store(e.Status.ID, true)
					}
				}))
				if err != nil || out != "made" {
					t.Errorf("result %q, %v", out, err)
				}
			})
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		want(t, "executed", l.take(), []string{"step"})
		if _, ok := waits.Load("waiting for another den that does this step"); !ok {
			t.Error("nothing said that it waits")
		}
	})
}

// A key is waited for without a slot: with one slot, whoever holds the key and
// needs the slot must get it.
func TestKeyIsNotWaitedForInASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache, l := newMemCache(), &trail{}
		blocked := &toy{name: "blocked"}
		free := &toy{name: "free"}
		cm, err := toyOp{blocked, l}.CacheMap(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := contentKey(t.Context(), cm, nil)
		if err != nil {
			t.Fatal(err)
		}
		unlock, err := cache.Lock(t.Context(), key, func() {})
		if err != nil {
			t.Fatal(err)
		}
		s := New(cache, Options{Slots: 1})
		done := make(chan error, 1)
		go func() {
			_, err := s.Solve(t.Context(), graph(l, blocked), graph(l, free))
			done <- err
		}()
		synctest.Wait()
		want(t, "executed meanwhile", l.take(), []string{"free"})
		unlock()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSlotsBoundExecution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		top := &toy{name: "top"}
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			top.inputs = append(top.inputs, &toy{name: name, make: func(context.Context, []string) (string, error) {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				now--
				mu.Unlock()
				return name, nil
			}})
		}
		s := New(newMemCache(), Options{Slots: 2})
		if _, err := s.Solve(t.Context(), graph(&trail{}, top)); err != nil {
			t.Fatal(err)
		}
		want(t, "at once", most, 2)
	})
}

func TestAncestorsOfAHitAreReportedCachedInOrder(t *testing.T) {
	base := &toy{name: "base", source: true}
	a := &toy{name: "a", inputs: []*toy{base}}
	b := &toy{name: "b", inputs: []*toy{a}}
	cache := newMemCache()
	mustSolve(t, cache, &trail{}, b)
	var order []string
	_, err := solveToy(t, cache, &trail{}, b, progress.Func(func(e progress.Event) {
		if v := e.Vertex; v != nil && v.Completed != nil {
			if !v.Cached || v.Error != "" || v.Started == nil {
				t.Errorf("%s: %+v", v.Name, v)
			}
			order = append(order, v.Name)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "order", order, []string{"base", "a", "b"})
}

func TestEveryVertexIsAnnouncedBeforeItStarts(t *testing.T) {
	top := &toy{name: "top", inputs: []*toy{{name: "in", source: true}}}
	var events []string
	var mu sync.Mutex
	_, err := solveToy(t, newMemCache(), &trail{}, top, progress.Func(func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch v := e.Vertex; {
		case v.Completed != nil:
			events = append(events, "done "+v.Name)
		case v.Started != nil:
			events = append(events, "start "+v.Name)
		default:
			events = append(events, "new "+v.Name)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "events", events, []string{"new in", "new top", "start in", "done in", "start top", "done top"})
}

func TestCancelledFlightBeginsAnew(t *testing.T) {
	var f flight[int]
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() { <-running; cancel() }()
	_, err := f.do(ctx, func(ctx context.Context) (int, error) {
		close(running)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	n, err := f.do(t.Context(), func(context.Context) (int, error) { return 7, nil })
	if n != 7 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestOneOfTwoWaitersMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[int]
		release := make(chan struct{})
		fn := func(ctx context.Context) (int, error) {
			select {
			case <-release:
				return 7, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		got := make(chan int, 1)
		go func() { _, err := f.do(ctx, fn); left <- err }()
		go func() { n, _ := f.do(t.Context(), fn); got <- n }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		close(release)
		want(t, "value", <-got, 7)
	})
}

// The digests of this test are the store's format. If one changes, every
// record of every store is orphaned: change the version in key.go on purpose.
func TestKeyRecipe(t *testing.T) {
	op := digest.FromString("op")
	m := &CacheMap{Digest: op, Inputs: []InputKey{{Selector: "/a\n\"b"}, {}}}
	edges := []edge{{index: 0}, {index: 2}}
	got := []oci.Digest{
		definitionKey(&CacheMap{Digest: op}, nil, nil),
		definitionKey(m, edges, []oci.Digest{digest.FromString("x"), digest.FromString("y")}),
	}
	content, err := contentKey(t.Context(), &CacheMap{Digest: op, Inputs: []InputKey{
		{Selector: "/s"},
		{Selector: "/ignored", Content: func(context.Context, Result) (oci.Digest, error) { return digest.FromString("c"), nil }},
	}}, []Result{value("r"), value("unused")})
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, content)
	want(t, "keys", got, []oci.Digest{
		"sha256:ad64f56de02dbdb4951bed456235f3d82b7c895603e454b0ac39204e0516c5e0",
		"sha256:ed30cb9109bdd8fa3ad1a4e8d496c160bc9dc69cc7490e706dcf890a28212a04",
		"sha256:442f5ac273ff36c4e73b737b7cc3e0193ed652ee4cf4215c659328d1a1443a23",
	})
	slices.Sort(got)
	if len(slices.Compact(got)) != 3 {
		t.Error("keys are equal")
	}
}
