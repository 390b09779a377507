package ops

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestCrashChild is the process that a crash test kills.
func TestCrashChild(t *testing.T) {
	root := os.Getenv("DEN_TEST_STORE")
	if root == "" {
		t.Skip("is started by the crash tests")
	}
	env := rootEnv(t, root)
	_, _, err := tryStep(context.Background(), env, shell("echo x >f", nil), busybox(t, env))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("outlived its failpoint: %v", err)
	}
	left, err := os.ReadDir(env.Store.Root() + "/tmp")
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestDeathAtAnyPointLeavesNoHalfLayer(t *testing.T) {
	for _, point := range []string{"ops.exec.start", "ops.exec.publish"} {
		for _, action := range []string{"kill", "enospc"} {
			t.Run(point+" "+action, func(t *testing.T) {
				root := t.TempDir()
				env := rootEnv(t, root)
				cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
				cmd.Env = append(os.Environ(), "DEN_TEST_STORE="+root, "DEN_FAILPOINTS="+point+"="+action)
				out, err := cmd.CombinedOutput()
				killed := err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
				if killed != (action == "kill") || !killed && err != nil {
					t.Fatalf("the child: %v\n%s", err, out)
				}
				report, err := env.Store.Verify(context.Background(), true)
				if err != nil || len(report.Problems) > 0 {
					t.Errorf("store: %+v, %v", report.Problems, err)
				}
				res, _ := runStep(t, env, shell("echo x >f", nil), busybox(t, env))
				if got := changes(t, res[0]); got != "f -rw-r--r-- x\n" {
					t.Errorf("afterwards: %q", got)
				}
			})
		}
	}
}
