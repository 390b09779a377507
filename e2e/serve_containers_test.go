package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestDockerRunsContainersOfDenServe(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		for _, tt := range []struct {
			stdin    string
			args     []string
			out, err string
			code     int
		}{
			{args: []string{"small", "echo", "hi"}, out: "hi\n"},
			{args: []string{"small", "sh", "-c", "echo out; echo err >&2; exit 3"}, out: "out\n", err: "err\n", code: 3},
			{stdin: "foo", args: []string{"-i", "small", "cat"}, out: "foo"},
			{args: []string{"-e", "A=1", "-w", "/tmp", "--hostname", "h", "small", "sh", "-c", "echo $A; pwd; hostname"}, out: "1\n/tmp\nh\n"},
			{args: []string{"-u", "app", "small", "id", "-un"}, out: "app\n"},
			{args: []string{"--entrypoint", "echo", "small", "x"}, out: "x\n"},
			{args: []string{"--network", "none", "small", "true"}},
			{args: []string{"--read-only", "--tmpfs", "/t", "small", "sh", "-c", "touch /t/x && ! touch /x 2>/dev/null && echo ok"}, out: "ok\n"},
			{args: []string{"small", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, err: "Killed\n", code: 137},
		} {
			r := s.tryDocker(strings.NewReader(tt.stdin), append([]string{"run", "--rm"}, tt.args...)...)
			if r.code != tt.code || r.out != tt.out || r.err != tt.err {
				t.Errorf("docker run %s: exit %d, %q, %q", strings.Join(tt.args, " "), r.code, r.out, r.err)
			}
		}
		if r := s.tryDocker(nil, "run", "--rm", "small", "nonesuch"); r.code != 127 || !strings.Contains(r.err, "not found in $PATH") {
			t.Errorf("a missing program: exit %d, %q", r.code, r.err)
		}
		if out := s.docker("ps", "-aq"); out != "" {
			t.Errorf("containers stay: %s", out)
		}
		s.refused("privileged containers are refused", "run", "--rm", "--privileged", "small", "true")
		s.refused("den hands no GPUs", "run", "--rm", "--gpus", "all", "small", "true")
		s.refused("This node is not a swarm manager", "service", "ls")
	})
}

func TestDockerSeesADetachedContainerThroughItsLife(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		id := s.docker("run", "-d", "--name", "c1", "--init", "--label", "k=v", "-v", "vol1:/v", "--stop-timeout", "1",
			"small", "sh", "-c", "echo one; echo two >&2; trap 'exit 5' USR1; while :; do sleep 0.1; done")
		s.eventually("both lines are in the log", func() bool { return s.docker("logs", "c1") == "one" })
		if r := s.tryDocker(nil, "logs", "-t", "--tail", "1", "c1"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT[\d:.]+Z (one|two)\n$`).MatchString(r.out + r.err) {
			t.Errorf("the last line with its time is %q%q", r.out, r.err)
		}
		if out := s.docker("ps", "--filter", "label=k=v", "--filter", "name=c1", "--format", "{{.ID}} {{.Image}} {{.State}}"); out != id[:12]+" small running" {
			t.Errorf("ps says %q", out)
		}
		if out := s.docker("inspect", "-f", "{{.State.Status}} {{.Config.Labels.k}} {{.HostConfig.Init}} {{(index .Mounts 0).Name}} {{.Config.Image}}", "c1"); out != "running v true vol1 small" {
			t.Errorf("inspect says %q", out)
		}
		if out := s.docker("exec", "-e", "X=1", "-w", "/tmp", "c1", "sh", "-c", "echo $X; pwd"); out != "1\n/tmp" {
			t.Errorf("exec says %q", out)
		}
		if r := s.tryDocker(strings.NewReader("z"), "exec", "-i", "c1", "sh", "-c", "cat; exit 4"); r.out != "z" || r.code != 4 {
			t.Errorf("exec -i: exit %d, %q, %q", r.code, r.out, r.err)
		}
		if r := s.tryDocker(nil, "exec", "c1", "nonesuch"); r.code != 127 && r.code != 126 {
			t.Errorf("exec of a missing program: exit %d, %q", r.code, r.err)
		}
		if out := s.docker("top", "c1", "-o", "pid,args"); !strings.Contains(out, "sleep 0.1") && !strings.Contains(out, "sh -c") {
			t.Errorf("top says %q", out)
		}
		if out := s.docker("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}}", "c1"); !strings.HasPrefix(out, "c1 ") || !strings.HasSuffix(out, "%") {
			t.Errorf("stats says %q", out)
		}
		s.refused("is already in use by container", "create", "--name", "c1", "small")
		s.refused("container is running", "rm", "c1")
		s.docker("rename", "c1", "c2")
		s.docker("kill", "-s", "USR1", "c2")
		if out := s.docker("wait", "c2"); out != "5" {
			t.Errorf("wait says %q", out)
		}
		if out := s.docker("ps", "-a", "--format", "{{.Names}} {{.Status}}"); !strings.HasPrefix(out, "c2 Exited (5) ") {
			t.Errorf("ps says %q", out)
		}
		s.docker("restart", "-t", "1", "c2")
		s.docker("stop", "-t", "0", "c2")
		s.docker("rm", "-v", "c2")
		s.refused("No such container: c2", "start", "c2")
	})
}

func TestDockerCopiesInBothDirections(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		in := d.dir(files{"tree/f": "hello", "tree/sub/g": "deep"})
		s.docker("create", "--name", "c1", "-v", "vol1:/v", "small", "sleep", "60")
		for _, state := range []string{"created", "running"} {
			if state == "running" {
				s.docker("start", "c1")
			}
			s.docker("cp", filepath.Join(in, "tree"), "c1:/tmp/"+state)
			out := filepath.Join(d.home, "out-"+state)
			s.docker("cp", "c1:/tmp/"+state, out)
			b, err := os.ReadFile(filepath.Join(out, "sub/g"))
			if err != nil || string(b) != "deep" {
				t.Errorf("%s: %q, %v", state, b, err)
			}
			s.refused("Could not find the file /nonesuch in container", "cp", "c1:/nonesuch", "-")
		}
		if out := s.docker("exec", "c1", "cat", "/tmp/created/f", "/tmp/running/sub/g"); out != "hellodeep" {
			t.Errorf("the container has %q", out)
		}
		if out := s.docker("diff", "c1"); !strings.Contains(out, "A /tmp/created/sub/g") {
			t.Errorf("diff says %q", out)
		}
		s.docker("rm", "-f", "c1")
	})
}

func TestDockerFollowsEventsAndPrunes(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		s.docker("volume", "create", "--label", "a=b", "data")
		s.docker("run", "--name", "c1", "-v", "data:/d", "-v", "/anonymous", "small", "true")
		// The CLI cuts fractions of seconds off: until now would end before what has just happened.
		out := s.docker("events", "--since", "10m", "--until=-2s", "--filter", "type=container", "--filter", "container=c1", "--format", "{{.Action}}")
		if got := strings.Join(strings.Fields(out), " "); got != "create attach start die" && got != "create start die" {
			t.Errorf("events are %q", got)
		}
		if out := s.docker("volume", "ls", "-q", "--filter", "label=a=b"); out != "data" {
			t.Errorf("volumes are %q", out)
		}
		s.refused("volume is in use", "volume", "rm", "data")
		if out := s.docker("container", "prune", "-f"); !strings.Contains(out, "Deleted Containers:") {
			t.Errorf("prune says %q", out)
		}
		s.docker("volume", "prune", "-f")
		if out := s.docker("volume", "ls", "-q"); out != "data" {
			t.Errorf("after a prune the volumes are %q", out)
		}
		s.docker("volume", "rm", "data")
	})
}
