package ops

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"den/internal/build/solver"
)

// TestFileCrashChild is the process that the test below kills.
func TestFileCrashChild(t *testing.T) {
	root, dir := os.Getenv("DEN_TEST_FILE_STORE"), os.Getenv("DEN_TEST_CONTEXT")
	if root == "" {
		t.Skip("is started by a crash test")
	}
	env := storeEnv(t, root)
	_, err := runFile(t, env, []solver.Result{nil, localRef(t, env, dir, nil)}, chain(2, cp("/", "/app")))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("outlived its failpoint: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(root, "tmp"))
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestDeathBeforeAFileLayerIsPublishedLeavesNone(t *testing.T) {
	needRoot(t)
	dir := deltaContext(t)
	for _, earlier := range []string{"no earlier layer", "a delta"} {
		for _, action := range []string{"kill", "enospc"} {
			t.Run(earlier+" "+action, func(t *testing.T) {
				root := t.TempDir()
				env := storeEnv(t, root)
				if earlier == "a delta" {
					check(t, rewrite("d1/sub1/f1", "before")(dir))
					copyAll(t, env, dir, nil)
				}
				check(t, rewrite("d1/sub1/f1", "after")(dir))
				cmd := exec.Command(os.Args[0], "-test.run=^TestFileCrashChild$")
				cmd.Env = append(os.Environ(), "DEN_TEST_FILE_STORE="+root, "DEN_TEST_CONTEXT="+dir, "DEN_FAILPOINTS=ops.file.publish="+action)
				out, err := cmd.CombinedOutput()
				killed := err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
				if killed != (action == "kill") || !killed && err != nil {
					t.Fatalf("the child: %v\n%s", err, out)
				}
				report, err := env.Store.Verify(context.Background(), true)
				check(t, err)
				if len(report.Problems) > 0 {
					t.Errorf("store: %+v", report.Problems)
				}
				if got, want := copyAll(t, env, dir, nil).ID(), copyAll(t, storeEnv(t, t.TempDir()), dir, nil).ID(); got != want {
					t.Errorf("afterwards it makes %s, a new store makes %s", got, want)
				}
			})
		}
	}
}
