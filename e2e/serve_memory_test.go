package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
)

// What an idle den serve holds: memory in all and for each idle container, and open files.
func TestIdleDenServeIsSmall(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, make := range map[string]func(testing.TB) *den{"privileged": newDen, "userns": newPlainDen} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := make(t)
			e := d.serve(name)
			var seen use
			small := func(what string, private int) {
				d.eventually(fmt.Sprintf("%s has less than 40 MiB resident and %d KiB of its own", what, private), func() bool {
					seen = e.memory(t)
					return seen.rss < 40<<10 && seen.private < private
				})
			}
			small("den serve", 16<<10) // it has 7
			if files, err := filepath.Glob("/proc/" + strconv.Itoa(e.pid) + "/fd/*"); err != nil || len(files) == 0 || len(files) > 40 {
				t.Errorf("den serve has %d open files (%v), want 1 to 40", len(files), err)
			}
			const containers = 5
			before := seen.private
			for range containers {
				e.must(t, "docker run -d --network none small sleep 100000")
			}
			small("with idle containers it", before+containers*3<<10)
			e.must(t, "docker rm -f $(docker ps -aq)")
		})
	}
}
