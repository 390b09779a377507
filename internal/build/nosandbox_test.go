package build

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"den/internal/progress"
)

// TestOnlyRunNeedsASandbox has every other instruction that makes or changes files: none may start a
// sandbox, or ask for what could start one.
func TestOnlyRunNeedsASandbox(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{
		"Dockerfile": `FROM scratch AS base
COPY etc /etc
WORKDIR /made/for/this
COPY --chown=user:group --chmod=4755 a b /chowned/
COPY --exclude=b . /all/
COPY <<EOF /here
text
EOF
FROM base AS other
COPY --from=base /chowned /copied
COPY --link a /linked
ADD a /added
FROM other
COPY --from=other --chown=user /copied/a /renamed
COPY b /etc/passwd
`,
		"etc/passwd": "user:x:1000:1000::/:/bin/sh\n", "etc/group": "group:x:7:\n", "a": "one", "b": "two",
	})
	asked := errors.New("a step asked for a sandbox")
	d := r.open()
	b := New(Options{Store: d.store, Images: d.images, Runner: func(context.Context) (*Runner, error) {
		t.Error(asked)
		return nil, asked
	}})
	for range 2 { // and again, when all is known
		s := &seen{vertices: map[digest.Digest]progress.Vertex{}, logs: map[string]string{}}
		if _, err := b.Solve(t.Context(), Request{Context: dir, Sink: s, LookupEnv: lookup(nil), Tags: []string{"t"}}); err != nil {
			t.Fatal(err)
		}
	}
}
