// Package storetest makes stores for tests.
package storetest

import (
	"context"
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
