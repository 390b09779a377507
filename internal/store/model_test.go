//go:build stress

package store

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// modelTime bounds one run of the model checker, which has to be exhaustive.
const modelTime = 5 * time.Minute

// The models of docs/design: the protocol holds in every state, and each
// variant that leaves out one of its steps does not.
func TestModelHoldsAndItsBrokenVariantsDoNot(t *testing.T) {
	for _, tool := range []string{"spin", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: the model checker (Debian packages spin and gcc)", tool)
		}
	}
	small := "-DUR=2 -DGR=1 -DKILLS=1"
	if os.Getenv("DEN_MODEL") == "full" {
		small = "-DUR=2 -DGR=2 -DKILLS=1"
	}
	for _, m := range []struct {
		model, defines string
		holds          bool
	}{
		{"store", small, true},
		{"store", "-DUR=2 -DGR=2 -DKILLS=1 -DNORESCUE", false},
		{"store", "-DUR=2 -DGR=2 -DKILLS=1 -DLATERESCUE", false},
		{"store", "-DUR=2 -DGR=2 -DKILLS=1 -DNORECHECK", false},
		{"store", "-DUR=2 -DGR=2 -DKILLS=1 -DMARKFIRST", false},
		{"store", "-DUR=2 -DGR=2 -DKILLS=1 -DNOCONDEMN", false},
		{"store", "-DUR=1 -DGR=2 -DKILLS=0 -DTWOGC", false},
		{"closure", "", true},
		{"closure", "-DTOPONLY", false},
		{"closure", "-DSHALLOW", false},
		{"closure", "-DNOOVER", false},
		{"closure", "-DONERESCUE", false},
	} {
		t.Run(strings.TrimSpace(m.model+" "+m.defines), func(t *testing.T) {
			t.Parallel()
			holds, report := checkModel(t, m.model, strings.Fields(m.defines))
			if holds != m.holds {
				t.Errorf("holds: %v, want %v\n%s", holds, m.holds, report)
			}
		})
	}
}

var modelErrors = regexp.MustCompile(`errors: (\d+)`)

// checkModel runs spin's verifier and says whether it found no error.
func checkModel(t *testing.T, model string, defines []string) (bool, string) {
	t.Helper()
	source, err := filepath.Abs("../../docs/design/" + model + ".pml")
	must(t, err)
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	run("spin", append(append([]string{"-a"}, defines...), source)...)
	run("cc", "-O2", "-DSAFETY", "-DCOLLAPSE", "-w", "-o", "pan", "pan.c")
	begin := time.Now()
	report := run("timeout", fmt.Sprint(modelTime.Seconds()), "./pan", "-m200000", "-w24")
	m := modelErrors.FindStringSubmatch(report)
	if m == nil || strings.Contains(report, "max search depth too small") {
		t.Fatalf("not exhaustive: %s", report)
	}
	t.Logf("%s errors, %v", m[1], time.Since(begin).Round(time.Millisecond))
	return m[1] == "0", report
}
