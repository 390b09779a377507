package sentry_test

import (
	"testing"
	"time"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// warmUp is how long a step runs while the next sentry makes itself ready.
const warmUp = 100 * time.Millisecond

// BenchmarkStart runs true in sentries that waited. A layer in image form needs no gofer.
func BenchmarkStart(b *testing.B) {
	for _, network := range []string{"host", "none"} {
		b.Run(network, func(b *testing.B) {
			e := newExecutor(b, sentry.Options{})
			r := benchRequest(b, e, network)
			for range 2 { // as many as it takes until one waits
				runBench(b, e, r)
			}
			for b.Loop() {
				b.StopTimer()
				time.Sleep(warmUp)
				b.StartTimer()
				runBench(b, e, r)
			}
		})
	}
}

// BenchmarkColdStart runs true in the first sentry of an executor.
func BenchmarkColdStart(b *testing.B) {
	for _, network := range []string{"host", "none"} {
		b.Run(network, func(b *testing.B) {
			platform := newExecutor(b, sentry.Options{}).Platform()
			r := benchRequest(b, newExecutor(b, sentry.Options{Platform: platform}), network)
			for b.Loop() {
				e := newExecutor(b, sentry.Options{Platform: platform})
				runBench(b, e, r)
			}
		})
	}
}

func benchRequest(b *testing.B, e *sentry.Executor, network string) *sandbox.Request {
	b.Helper()
	r := sandboxtest.New(b, e).Request("true")
	r.Network = network
	r.Spec.Process.Args = []string{"/bin/true"}
	if err := (&imageExecutor{Executor: e, dir: b.TempDir()}).images(b.Context(), &r.Root); err != nil {
		b.Fatal(err)
	}
	r.Root.Upper = ""
	return r
}

func runBench(b *testing.B, e *sentry.Executor, r *sandbox.Request) {
	b.Helper()
	s, err := e.Start(b.Context(), r)
	if err != nil {
		b.Fatal(err)
	}
	if exit, err := s.Wait(b.Context()); err != nil || exit.Code != 0 {
		b.Fatal(exit, err)
	}
}
