package e2e

import (
	"strings"
	"testing"
)

// Each limit that docker run knows is kept on every rung, or the container's start says that it is not: by den
// run and by den serve alike.
func TestLimitsOfContainersAreKeptOrWarnedOf(t *testing.T) {
	t.Parallel()
	flags := []string{"--ulimit=nofile=77:88", "--shm-size=5m", "--pids-limit=30", "--cpuset-cpus=0", "--memory=64m", "--cpus=0.5"}
	const look = `echo nofile $(ulimit -Sn) $(ulimit -Hn); df -k /dev/shm | awk 'END { print "shm", $2 }'; echo cpus $(nproc)
i=0; { while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; kill $(jobs -p); } 2>&1 | grep -qi -e resource -e fork && echo pids; true`
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		for door, r := range map[string]result{
			"den run":    d.try(nil, append(append([]string{"run", "--rm"}, flags...), expand(t, "@small"), "sh", "-c", look)...),
			"docker run": s.tryDocker(nil, append(append([]string{"run", "--rm"}, flags...), "small", "sh", "-c", look)...),
		} {
			said := strings.ToLower(r.err)
			t.Logf("%s: exit %d\n%s%s", door, r.code, r.out, r.err)
			for _, want := range []string{"nofile 77 88\n", "shm 5120\n"} {
				if !strings.Contains(r.out, want) {
					t.Errorf("%s: %q is missing", door, want)
				}
			}
			if kept := strings.Contains(r.out, "pids\n"); kept == strings.Contains(said, "processes") {
				t.Errorf("%s: the limit of processes is kept: %t, and a warning says otherwise, or none says so", door, kept)
			}
			if kept := strings.Contains(r.out, "cpus 1\n"); kept == strings.Contains(said, "cpu sets") {
				t.Errorf("%s: the choice of processors is kept: %t, and a warning says otherwise, or none says so", door, kept)
			}
		}
		for _, flag := range []string{"--blkio-weight=100", "--device-read-bps=/dev/null:1mb"} {
			if r := s.tryDocker(nil, "run", "--rm", flag, "small", "true"); r.code != 0 || !strings.Contains(r.err, "block") {
				t.Errorf("docker run %s: exit %d: %s", flag, r.code, r.err)
			}
		}
	})
}
