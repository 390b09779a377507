package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
		if r := s.tryDocker(nil, "run", "--rm", "--device-read-bps=/dev/null:1mb", "small", "true"); r.code != 0 || !strings.Contains(r.err, "block") {
			t.Errorf("docker run --device-read-bps: exit %d: %s", r.code, r.err)
		}
		r := s.tryDocker(nil, "run", "-d", "--blkio-weight=300", "--memory-reservation=32m", "small", "sleep", "1000")
		if r.code != 0 {
			t.Fatalf("docker run --blkio-weight: exit %d: %s", r.code, r.err)
		}
		for want, file := range map[string]string{"block": "blkio.weight blkio.bfq.weight io.weight io.bfq.weight", "memory": "memory.soft_limit_in_bytes memory.low"} {
			if kept, warned := cgroupHas(strings.TrimSpace(r.out), strings.Fields(file)), strings.Contains(r.err, want); kept == warned {
				t.Errorf("%s: kept: %t, and the answer is %q", file, kept, r.err)
			}
		}
		s.docker("rm", "-f", strings.TrimSpace(r.out))
	})
}

// cgroupHas says whether a cgroup of the container id has a value of its own in one of these files.
func cgroupHas(id string, files []string) bool {
	found := false
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, id) && slices.Contains(files, e.Name()) {
			b, err := os.ReadFile(path)
			text := strings.TrimSpace(string(b))
			found = found || err == nil && text != "" && text != "0" && text != "100" && text != "default 100" && len(text) < 16
		}
		return nil // what goes meanwhile is others'
	})
	return found
}
