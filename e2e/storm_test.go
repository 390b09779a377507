package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// jobs is how many den processes work on one store at the same time.
const jobs = 20

// stormTime is how long they do: $DEN_STORM, of which `make stress` makes ten minutes.
func stormTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("DEN_STORM")
	if s == "" {
		s = "30s"
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("DEN_STORM: %v", err)
	}
	return d
}

// A storm is many jobs on the store of one den.
type storm struct {
	*den
	until    time.Time
	contexts []string
	archive  string
	ran      atomic.Int64
	killed   atomic.Int64
}

// A job is a loop of den processes with an engine of its own, as a CI job is.
type job struct {
	*storm
	n       int
	rnd     *rand.Rand
	kills   bool   // some of its processes are killed
	tag     string // what it builds
	built   string // what the tag's image prints, "" for none and for unknown
	unknown bool   // a process was killed that may have done its work
}

// stormDockerfiles share a base and steps, write layers of megabytes and use
// one cache mount between them.
var stormDockerfiles = []string{`FROM @small
RUN head -c 3000000 /dev/urandom > /noise; mkdir -p /a/b/c; ln -s b /a/l
RUN --mount=type=cache,target=/cache,sharing=shared date >> /cache/log; cp /cache/log /log
ARG ID
RUN echo $ID > /id
`, `FROM @small AS early
RUN head -c 3000000 /dev/urandom > /noise; mkdir -p /a/b/c; ln -s b /a/l
FROM early AS other
RUN --mount=type=cache,target=/locked,sharing=locked echo x >> /locked/n && cp /locked/n /n && rm /a/l
FROM early
COPY --from=other /n /n
COPY f* /f/
ARG ID
RUN rm -r /a && echo $ID > /id
`, `FROM @small
COPY --chown=33:44 f1 /x/
RUN --mount=type=cache,target=/private,sharing=private touch /private/x; chown -R 5:6 /x; chmod 4755 /x/f1
ARG ID
COPY <<EOF /id
${ID}
EOF
`}

// newStorm prepares the contexts, and an archive to load.
func newStorm(t *testing.T, d *den) *storm {
	t.Helper()
	s := &storm{den: d}
	for _, text := range stormDockerfiles {
		s.contexts = append(s.contexts, d.dir(files{"Dockerfile": text, "f1": "one", "f2": strings.Repeat("two", 10_000)}))
	}
	before := d.with("DEN_DATA_ROOT="+filepath.Join(d.home, "before"), "DEN_STORE="+filepath.Join(d.home, "other"))
	s.archive = filepath.Join(d.home, "loaded.tar")
	before.run("build", "-q", "-t", "loaded:1", "--build-arg", "ID=loaded", s.contexts[2])
	before.run("save", "-o", s.archive, "loaded:1")
	s.until = time.Now().Add(stormTime(t))
	return s
}

// job is the n-th loop; its engine is its own.
func (s *storm) job(n int) *job {
	c := *s.den
	c.env = append(append([]string{}, s.env...), "DEN_DATA_ROOT="+filepath.Join(s.home, fmt.Sprintf("job-%d", n)))
	own := &storm{den: &c, until: s.until, contexts: s.contexts, archive: s.archive}
	return &job{storm: own, n: n, rnd: rand.New(rand.NewPCG(uint64(n), uint64(os.Getpid()))), tag: "app:test"}
}

// do runs den, and kills it now and then. It returns what den printed, and
// whether it was killed before it ended.
func (j *job) do(args ...string) (out string, code int, killed bool) {
	cmd := j.command(context.Background(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		j.t.Errorf("den %v: %v", args, err)
		return "", -1, true
	}
	kill := j.kills && j.rnd.IntN(2) == 0
	if kill {
		timer := time.AfterFunc(time.Duration(j.rnd.IntN(200))*time.Millisecond, func() { _ = cmd.Process.Kill() }) // it may have ended
		defer timer.Stop()
	}
	stop := time.AfterFunc(timeout, func() {
		j.t.Errorf("job %d: den %s does not end\n%s", j.n, strings.Join(args, " "), tail(stderr.String()))
		_ = cmd.Process.Kill()
	})
	defer stop.Stop()
	_ = cmd.Wait() // the exit code says it
	if kill && cmd.ProcessState.ExitCode() < 0 {
		return "", -1, true
	}
	return stdout.String() + stderr.String(), cmd.ProcessState.ExitCode(), false
}

// must is do for what has to succeed unless it is killed; it says whether it did.
func (j *job) must(args ...string) (string, bool) {
	out, code, killed := j.do(args...)
	if killed {
		j.killed.Add(1)
		return "", false
	}
	j.ran.Add(1)
	if code != 0 {
		j.t.Errorf("job %d: den %s: exit %d\n%s", j.n, strings.Join(args, " "), code, tail(out))
		return "", false
	}
	return out, true
}

// build gives the tag to another image.
func (j *job) build() {
	id := fmt.Sprintf("%d-%d", j.n, j.rnd.IntN(5))
	args := []string{"build", "-q", "-t", j.tag, "--build-arg", "ID=" + id, j.contexts[j.rnd.IntN(len(j.contexts))]}
	if j.rnd.IntN(6) == 0 {
		args = append(args, "--no-cache")
	}
	_, ok := j.must(args...)
	j.unknown = !ok
	if j.built = ""; ok {
		j.built = id
	}
}

// use runs what was built.
func (j *job) use() {
	if j.built == "" {
		return
	}
	if out, ok := j.must("run", "--rm", "--network=none", j.tag, "cat", "/id"); ok && strings.TrimSpace(out) != j.built {
		j.t.Errorf("job %d: %s holds %q, want %q", j.n, j.tag, out, j.built)
	}
}

// remove removes what was built.
func (j *job) remove() {
	if j.unknown {
		_, _, killed := j.do("rmi", "-f", j.tag)
		j.unknown = killed
		return
	}
	if j.built == "" {
		return
	}
	j.built = ""
	_, ok := j.must("rmi", "-f", j.tag)
	j.unknown = !ok
}

// seen checks that the engine holds its own image and nobody else's.
func (j *job) seen() {
	out, ok := j.must("images", "--format", "{{.Repository}}:{{.Tag}}", "app")
	if !ok || j.unknown {
		return
	}
	want := ""
	if j.built != "" {
		want = j.tag
	}
	if got := strings.TrimSpace(out); got != want {
		j.t.Errorf("job %d: sees %q, want %q", j.n, got, want)
	}
}

// loop works until the storm ends.
func (j *job) loop() {
	for time.Now().Before(j.until) {
		switch j.rnd.IntN(12) {
		case 0, 1, 2, 3:
			j.build()
		case 4, 5:
			j.use()
		case 6, 7:
			j.remove()
		case 8:
			j.must("prune", "-f")
		case 9:
			if _, ok := j.must("prune", "-a", "-f"); ok || j.built != "" {
				j.built, j.unknown = "", !ok
			}
		case 10:
			j.seen()
		default:
			j.other()
		}
	}
}

// other is what comes now and then.
func (j *job) other() {
	switch j.rnd.IntN(6) {
	case 0:
		j.must("load", "-q", "-i", j.archive)
	case 1:
		j.must("store", "gc")
	case 2:
		j.must("store", "df")
	case 3:
		j.must("store", "verify")
	case 4:
		j.must("store", "locks")
	default:
		j.must("build", "--no-cache", "-o", "type=tar,dest=/dev/null", j.contexts[j.rnd.IntN(len(j.contexts))])
	}
}

// rage runs every job, some of whose processes are killed, until the end.
func (s *storm) rage(t *testing.T, kills bool) {
	var wg sync.WaitGroup
	for n := range jobs {
		wg.Go(func() {
			j := s.job(n)
			j.kills = kills
			j.loop()
			s.ran.Add(j.ran.Load())
			s.killed.Add(j.killed.Load())
		})
	}
	wg.Wait()
	t.Logf("%d den processes ended, %d were killed", s.ran.Load(), s.killed.Load())
}

// calm checks that nothing is damaged and nothing left, and removes everything.
func (s *storm) calm(t *testing.T) {
	t.Helper()
	out := s.run("store", "verify", "--deep")
	t.Logf("den store verify --deep: %s", strings.TrimSpace(out))
	for n := range jobs {
		j := s.job(n)
		j.run("prune", "-a", "-f", "--volumes")
		if left := strings.TrimSpace(j.run("images", "-q")); left != "" {
			t.Errorf("job %d: still has %q", n, left)
		}
		if left := strings.TrimSpace(j.run("ps", "-aq")); left != "" {
			t.Errorf("job %d: still has the containers %q", n, left)
		}
	}
	s.run("store", "gc", "--all")
	s.eventually("nothing is left over", func() bool { return len(s.leftovers()) == 0 })
	s.eventually("no process of a container is left", func() bool { return len(processes(t, s.home)) == 0 })
	s.run("store", "verify", "--deep")
	ctx := s.dir(files{"Dockerfile": stormDockerfiles[0]})
	s.run("build", "-q", "-t", "after", "--build-arg", "ID=after", ctx)
	if got := strings.TrimSpace(s.run("run", "--rm", "--network=none", "after", "cat", "/id")); got != "after" {
		t.Errorf("after the storm, the image holds %q", got)
	}
}

// Twenty processes build, run, remove, prune and collect on one store, and any
// may die at any moment: two loops that build and remove are enough to break
// buildah's store within a minute.
func TestStormOfProcessesThatAreKilledDamagesNothing(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *den{"caller": newDen, "plain user": newPlainDen} {
		t.Run(name, func(t *testing.T) {
			s := newStorm(t, open(t))
			s.rage(t, true)
			s.calm(t)
		})
	}
}

// Twenty jobs call what they build by one name, and never see each other's.
func TestJobsOfOneStoreDoNotSeeEachOther(t *testing.T) {
	s := newStorm(t, newDen(t))
	s.until = time.Now().Add(stormTime(t) / 3)
	s.rage(t, false)
	s.calm(t)
}
