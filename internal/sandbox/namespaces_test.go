package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
)

// TestMain enters a user namespace where that is the way to run sandboxes, so
// that the same tests run as root and as a plain user.
func TestMain(m *testing.M) {
	f := probe.Gather(context.Background(), os.TempDir())
	if c, err := sandbox.Choose(f, os.Getenv("DEN_TEST_ISOLATION")); err == nil && c.Enter {
		fmt.Fprintln(os.Stderr, "enter user namespace:", sandbox.EnterUserns(f, os.Args, os.Environ()))
	}
	os.Exit(m.Run())
}

// executor is the best that this machine allows; without any the test is skipped.
func executor(t testing.TB, o sandbox.Options) sandbox.Executor {
	t.Helper()
	var err error
	if o.Choice, err = sandbox.Choose(probe.Gather(t.Context(), t.TempDir()), os.Getenv("DEN_TEST_ISOLATION")); err != nil {
		t.Skip("needs namespaces: ", err)
	}
	if o.Choice.Enter {
		t.Skip("needs to be inside a user namespace, which could not be entered")
	}
	e, err := sandbox.NewNamespaces(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestContract(t *testing.T) {
	sandboxtest.Contract(t, executor(t, sandbox.Options{}))
}

// TestContractWithOverlaysOfOldKernels mounts as kernels before 6.5 need it.
func TestContractWithOverlaysOfOldKernels(t *testing.T) {
	sandboxtest.Contract(t, executor(t, sandbox.Options{OldOverlay: true}))
}

func BenchmarkTrue(b *testing.B) {
	bench := sandboxtest.New(b, executor(b, sandbox.Options{}))
	r := bench.RequestFor(sandbox.SpecOptions{Args: []string{"/bin/true"}})
	for b.Loop() {
		s, err := bench.Exec.Start(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		bench.Renew()
		b.StartTimer()
	}
}
