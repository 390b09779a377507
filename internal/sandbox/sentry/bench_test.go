package sentry_test

import (
	"testing"
	"time"

	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// warmUp is how long a step runs while the next sentry makes itself ready.
const warmUp = 100 * time.Millisecond

// BenchmarkStart runs true: the first two in sentries that start for it, the others in one that
// waited. A layer in image form needs no gofer.
func BenchmarkStart(b *testing.B) {
	for _, network := range []string{"host", "none"} {
		b.Run(network, func(b *testing.B) {
			e := &imageExecutor{Executor: newExecutor(b, sentry.Options{}), dir: b.TempDir()}
			bench := sandboxtest.New(b, e)
			r := bench.Request("true")
			r.Network = network
			r.Spec.Process.Args = []string{"/bin/true"}
			if err := e.images(b.Context(), &r.Root); err != nil {
				b.Fatal(err)
			}
			r.Root.Upper = ""
			for b.Loop() {
				s, err := e.Executor.Start(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				time.Sleep(warmUp)
				b.StartTimer()
				if exit, err := s.Wait(b.Context()); err != nil || exit.Code != 0 {
					b.Fatal(exit, err)
				}
			}
		})
	}
}
