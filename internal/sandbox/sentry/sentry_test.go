package sentry_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

func TestMain(m *testing.M) {
	if sentry.Main() {
		return
	}
	if dir := os.Getenv(killedEnv); dir != "" {
		fmt.Fprintln(os.Stderr, "victim:", victim(dir))
		os.Exit(1)
	}
	if how := os.Getenv(eaterEnv); how != "" {
		fmt.Fprintln(os.Stderr, "eater:", eat(how))
		os.Exit(1)
	}
	if os.Getenv(forkerEnv) != "" {
		if err := forker(); err != nil {
			fmt.Fprintln(os.Stderr, "forker:", err)
			os.Exit(1)
		}
		return
	}
	if how := os.Getenv(callerEnv); how != "" {
		if err := call(how); err != nil {
			fmt.Fprintln(os.Stderr, "caller:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// newExecutor is an executor on the platform that works here.
func newExecutor(t testing.TB, o sentry.Options) *sentry.Executor {
	t.Helper()
	sandboxtest.Busybox(t)
	e, err := sentry.New(o)
	if errors.Is(err, sentry.ErrCgo) {
		t.Skip("needs a test built with CGO_ENABLED=0")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// TestContractWithLayersThatAreDirectories has what the form of layers makes a difference to.
func TestContractWithLayersThatAreDirectories(t *testing.T) {
	sandboxtest.ContractOf(t, newExecutor(t, sentry.Options{}), "ChangesLandInTheUpperDirectory", "UserGroupsAndUmask",
		"MissingWorkingDirectoryIsMade", "MountPointsLeaveNoTrace", "HostileLinksStayInside", "MountsNest", "ManyLayers", "OverlaySubtree", "BindRoot")
}
