package failpoint

import (
	"errors"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseReadsEveryPair(t *testing.T) {
	got := parse("store.publish.rename=kill, store.ingest.write=enospc,,nonsense")
	want := map[string]string{"store.publish.rename": "kill", "store.ingest.write": "enospc"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUnarmedPointIsSilent(t *testing.T) {
	if err := act("x", ""); err != nil {
		t.Error(err)
	}
}

func TestErrnoActionsCarryTheErrno(t *testing.T) {
	if err := act("x", "enospc"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if err := act("x", "error"); err == nil {
		t.Error("got nil, want an error")
	}
}

func TestUnknownActionPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a misspelt action was ignored")
		}
	}()
	_ = act("x", "explode")
}
