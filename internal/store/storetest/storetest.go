// Package storetest makes stores for tests.
package storetest

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"den/internal/durable"
	"den/internal/store"
)

// Open returns a new, empty store that ends with the test. It is not synced:
// the process that does so would be at work while the test removes it.
func Open(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), t.TempDir(), store.Options{
		EngineDir:  t.TempDir(),
		Image:      Images(),
		Durability: durable.None,
		Notice:     func(line string) { t.Log(line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// imagesEnv tells the copy of a test binary that its stores are in image form.
const imagesEnv = "DEN_TEST_STORE_IMAGES"

// Images reports whether this test run's stores are in image form: it is what
// tests give to store.Options.Image.
func Images() bool { return os.Getenv(imagesEnv) != "" }

// AgainInImageForm runs those tests of this binary whose names match pattern once
// more, with stores in image form.
func AgainInImageForm(t *testing.T, pattern string) {
	t.Helper()
	if Images() {
		t.Skip("this is the run in image form")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+pattern, "-test.v")
	cmd.Env = append(os.Environ(), imagesEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("in image form: %v\n%s", err, out)
	}
}
