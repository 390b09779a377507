package sandboxtest

import (
	"context"
	"fmt"
	"os"
	"testing"

	"den/internal/probe"
	"den/internal/sandbox"
)

// Main is a TestMain for packages whose tests make trees with owners: a plain
// user's run moves into a user namespace with a range of ids first, as den
// itself does. Where that is not to be had the package is skipped, and why is said.
func Main(m *testing.M) {
	if sandbox.Reap() {
		return
	}
	if os.Geteuid() != 0 {
		f := probe.Gather(context.Background(), os.TempDir())
		c, err := sandbox.Choose(f, "")
		if err == nil && c.Enter {
			err = sandbox.EnterUserns(f, os.Args, os.Environ()) // returns only on error
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "skipped: needs root or a user namespace with a range of ids:", err)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}
