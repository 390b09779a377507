package ops

import (
	"fmt"
	"os"
	"testing"

	"den/internal/build/solver"
)

// A view has a descriptor for each layer: kept open by each step of a long
// Dockerfile, they would be as many as the square of its length.
func TestStepsKeepNoViewsOpen(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	const steps = 20
	var ref *Ref
	before := openFiles(t)
	for i := range steps {
		var in solver.Result
		if ref != nil {
			in = ref
		}
		ref = runFileOne(t, env, []solver.Result{in}, mkfile(fmt.Sprintf("/f%d", i), "x"))
	}
	if got := openFiles(t) - before; got > 2*steps {
		t.Errorf("%d steps keep %d files open", steps, got)
	}
	one, done, err := ref.FS(t.Context())
	check(t, err)
	two, doneToo, err := ref.FS(t.Context())
	check(t, err)
	if one != two {
		t.Error("users at the same time do not share the view")
	}
	done()
	done()
	if _, err := two.Lstat("f0"); err != nil {
		t.Errorf("the view was closed under its other user: %v", err)
	}
	doneToo()
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(names)
}
