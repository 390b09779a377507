package solver

import (
	"context"
	"errors"
	"testing"

	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
)

var errForeign = errors.New("no emulators")

// A foreign step whose result is recorded is not executed, and so not refused, and neither is
// one that may still be found by its content. Every other is refused before anything is executed.
func TestWhatCannotBeExecutedIsRefusedBeforeWorkIsLost(t *testing.T) {
	same := func(context.Context, []string) (string, error) { return "same", nil }
	type parts struct{ base, context, other, copied, foreign, top *toy }
	build := func(change func(p *parts)) *toy {
		p := &parts{base: &toy{name: "base", source: true, image: true}, context: &toy{name: "context", source: true}, other: &toy{name: "other"}}
		p.copied = &toy{name: "copied", inputs: []*toy{p.base, p.context}, make: same}
		p.foreign = &toy{name: "foreign", inputs: []*toy{p.base}}
		change(p)
		p.top = &toy{name: "top", inputs: []*toy{p.other, p.foreign}}
		return p.top
	}
	onCopied := func(p *parts) { p.foreign.inputs = []*toy{p.copied} }
	for _, c := range []struct {
		name     string
		recorded func(p *parts) // a build before, where the step can be executed
		change   func(p *parts)
		executed []string
		fails    bool
	}{
		{"native", nil, func(*parts) {}, []string{"base", "foreign", "other", "top"}, false},
		{"on an image", nil, func(p *parts) { p.foreign.refused = errForeign }, nil, true},
		{"recorded", func(*parts) {}, func(p *parts) { p.foreign.refused = errForeign }, nil, false},
		{"recorded, and something else changed", func(*parts) {}, func(p *parts) { p.foreign.refused, p.other.key = errForeign, "2" }, []string{"other"}, false},
		{"on files of an image that was never here", nil, func(p *parts) { onCopied(p); p.foreign.refused, p.base.unseen = errForeign, true }, nil, true},
		{"on files", nil, func(p *parts) { onCopied(p); p.foreign.refused = errForeign }, nil, true},
		{"on files that changed nothing", onCopied, func(p *parts) { onCopied(p); p.foreign.refused, p.context.key = errForeign, "2" }, []string{"base", "context"}, false},
		{"without the cache", func(*parts) {}, func(p *parts) { p.foreign.refused, p.foreign.ignore = errForeign, true }, nil, true},
	} {
		cache, l := newMemCache(), &trail{}
		if c.recorded != nil {
			mustSolve(t, cache, l, build(c.recorded))
			l.take()
		}
		s := New(cache, Options{Slots: 1})
		_, err := s.Solve(t.Context(), graph(l, build(c.change)))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if (err != nil) != c.fails || err != nil && !errors.Is(err, errForeign) {
			t.Errorf("%s: %v", c.name, err)
		}
		var v *bkerrdefs.VertexError
		if err != nil && (!errors.As(err, &v) || v.Digest != digest.FromString("vertex foreign").String()) {
			t.Errorf("%s: %v is not the step's", c.name, err)
		}
		if c.name == "on files" {
			continue // how far the others get is a race
		}
		want(t, c.name, l.take(), c.executed)
	}
}
