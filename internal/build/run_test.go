package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"

	"den/internal/progress"
)

// kitchen is a rig with a context that holds a shell.
func kitchen(t *testing.T, dockerfile string, files map[string]string) (*rig, string) {
	t.Helper()
	r := newRig(t)
	r.needsRunner()
	dir := installShell(t, r.context(files))
	write(t, dir, map[string]string{"Dockerfile": "FROM scratch AS base\nCOPY rootfs /\n" + dockerfile})
	return r, dir
}

// output builds into a directory and returns the files that were asked for.
func (r *rig) output(req Request, names ...string) map[string]string {
	r.t.Helper()
	out := r.t.TempDir()
	req.Outputs = []string{out}
	r.solve(req)
	got := map[string]string{}
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(out, n))
		if err != nil {
			r.t.Error(err)
		}
		got[n] = strings.TrimSpace(string(data))
	}
	return got
}

func TestStepsRunOnceAndAreCached(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nARG WHO=world\nRUN echo hello $WHO > /greeting\nRUN cat /greeting && echo more >> /greeting\n", nil)
	_, s := r.solve(Request{Context: dir, Tags: []string{"x"}})
	if len(s.executed()) != 3 {
		t.Errorf("executed %q", s.executed())
	}
	if logs := fmt.Sprint(s.logs); !strings.Contains(logs, "hello world") {
		t.Errorf("logs are %s", logs)
	}
	_, s = r.solve(Request{Context: dir})
	if len(s.executed()) > 0 {
		t.Errorf("the second build executed %q", s.executed())
	}
	got := r.output(Request{Context: dir, BuildArgs: []string{"WHO=you"}}, "greeting")
	if d := cmp.Diff(map[string]string{"greeting": "hello you\nmore"}, got); d != "" {
		t.Error(d)
	}
}

func TestFailingStepSaysWhereAndHow(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nRUN echo last words && exit 3\n", nil)
	_, s, err := r.try(Request{Context: dir})
	if err == nil || !strings.Contains(err.Error(), `process "/bin/sh -c echo last words && exit 3" did not complete successfully: exit code: 3`) {
		t.Fatalf("error is %v", err)
	}
	src := bkerrdefs.Sources(err)
	if len(src) != 1 || src[0].Ranges[0].Start.Line != 4 {
		t.Errorf("source is %v", src)
	}
	if logs := fmt.Sprint(s.logs); !strings.Contains(logs, "last words") {
		t.Errorf("logs are %s", logs)
	}
	_, s, err = r.try(Request{Context: dir})
	if err == nil || len(s.executed()) == 0 {
		t.Errorf("the failure was cached: %v, %q", err, s.executed())
	}
}

func TestSecretsReachTheStepAndNothingElse(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null && echo used > /used\n"+
		"RUN --mount=type=secret,id=e,env=TOKEN test -n \"$TOKEN\" && echo \"$TOKEN\" | cat > /dev/null\n", nil)
	req := Request{Context: dir, Tags: []string{"x"}, Secrets: []string{"id=s,env=S", "id=e,env=E"}, LookupEnv: lookup(map[string]string{"S": "hush-one", "E": "hush-two"})}
	r.solve(req)
	req.LookupEnv = lookup(map[string]string{"S": "rotated", "E": "rotated"})
	if _, s := r.solve(req); len(s.executed()) > 0 {
		t.Errorf("another value executed %q", s.executed())
	}
	if c := fmt.Sprintf("%+v", r.config("x")); strings.Contains(c, "hush") {
		t.Errorf("the secret is in the configuration: %s", c)
	}
	out := r.output(Request{Context: dir, Secrets: req.Secrets, LookupEnv: req.LookupEnv}, "used")
	if out["used"] != "used" {
		t.Error(out)
	}
}

func TestCancelEndsTheStepAndLeavesNothing(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nRUN echo started && sleep 600\n", nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := r.open()
	_, err := d.Solve(ctx, Request{Context: dir, LookupEnv: lookup(nil), Sink: progress.Func(func(e progress.Event) {
		if e.Log != nil && strings.Contains(string(e.Log.Data), "started") {
			cancel()
		}
	})})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	drafts, err := os.ReadDir(filepath.Join(d.store.Root(), "tmp"))
	if err != nil || len(drafts) > 0 {
		t.Errorf("drafts are %v, %v", drafts, err)
	}
}

func TestCacheMountOutlivesTheBuild(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nARG N\nRUN --mount=type=cache,target=/c echo $N >> /c/log && cat /c/log > /log\n", nil)
	first := r.output(Request{Context: dir, BuildArgs: []string{"N=1"}}, "log")
	second := r.output(Request{Context: dir, BuildArgs: []string{"N=2"}}, "log")
	if first["log"] != "1" || second["log"] != "1\n2" {
		t.Errorf("logs are %v and %v", first, second)
	}
}

func TestProxiesReachStepsAndNotKeysOrImages(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nRUN env | cat > /env\n", nil)
	env := map[string]string{"HTTP_PROXY": "http://proxy.invalid:1"}
	got := r.output(Request{Context: dir, LookupEnv: lookup(env)}, "env")
	if !strings.Contains(got["env"], "HTTP_PROXY=http://proxy.invalid:1") {
		t.Errorf("environment is %q", got["env"])
	}
	env["HTTP_PROXY"] = "http://other.invalid:1"
	_, s := r.solve(Request{Context: dir, LookupEnv: lookup(env), Tags: []string{"x"}})
	if len(s.executed()) > 0 {
		t.Errorf("another proxy executed %q", s.executed())
	}
	if c := fmt.Sprintf("%+v", r.config("x")); strings.Contains(c, ".invalid") {
		t.Errorf("the proxy is in the configuration: %s", c)
	}
}

func TestHostNetworkAndInsecureNeedPermission(t *testing.T) {
	for flag, name := range map[string]string{"--network=host": "network.host", "--security=insecure": "security.insecure"} {
		r, dir := kitchen(t, "FROM base\nRUN "+flag+" echo x > /x\n", nil)
		_, _, err := r.try(Request{Context: dir})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error is %v", flag, err)
		}
		if _, _, err := r.try(Request{Context: dir, Allow: []string{name}}); err != nil {
			t.Errorf("%s: allowed, %v", flag, err)
		}
	}
}

func TestBuildsBesideEachOtherShareTheirSteps(t *testing.T) {
	r, dir := kitchen(t, "FROM base AS a\nRUN echo a > /a\nFROM base AS b\nRUN echo b > /b\nFROM base\nCOPY --from=a /a /\nCOPY --from=b /b /\nRUN cat /a /b > /c\n", nil)
	var wg sync.WaitGroup
	ran := map[string]int{}
	ids := map[string]bool{}
	var mu sync.Mutex
	for range 3 {
		wg.Go(func() {
			res, s, err := r.try(Request{Context: dir})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			ids[string(res.ImageID)] = true
			for _, name := range s.executed() {
				ran[name]++
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("images are %v", ids)
	}
	for name, n := range ran {
		if n != 1 {
			t.Errorf("%s ran %d times", name, n)
		}
	}
	if len(ran) != 6 {
		t.Errorf("executed %v", ran)
	}
}

func TestForeignArchitectureSaysHowToRegisterIt(t *testing.T) {
	r, dir := kitchen(t, "FROM base\nRUN echo x\n", nil)
	_, _, err := r.try(Request{Context: dir, Platforms: []string{"linux/s390x"}})
	if err == nil {
		t.Skip("needs a machine that cannot run s390x programs")
	}
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "binfmt") {
		t.Errorf("error is %v", err)
	}
}

func TestTheWholeLanguage(t *testing.T) {
	r, dir := kitchen(t, `FROM base AS onbuild
ONBUILD RUN echo triggered > /triggered
FROM onbuild
SHELL ["/bin/sh", "-e", "-c"]
ENV A=1 B="two words"
WORKDIR /work
USER 0:0
RUN <<EOF
echo "$A $B" > env
echo "$PWD" > pwd
EOF
COPY <<"EOF" heredoc
literal $A
EOF
COPY --chmod=0640 --chown=33:34 file owned
COPY --parents tree/deep/*.txt /parents/
COPY --exclude=*.md tree /excluded
ADD archive.tar /unpacked
RUN --mount=type=bind,source=tree,target=/mnt cat /mnt/deep/x.txt > bound
RUN --mount=type=tmpfs,target=/tmpfs echo x > /tmpfs/x
RUN --network=none echo alone > alone
HEALTHCHECK --interval=5s CMD ["true"]
STOPSIGNAL SIGUSR1
EXPOSE 80/tcp
VOLUME /data
LABEL k=v
CMD ["echo", "hi"]
ENTRYPOINT ["/bin/sh"]
`, map[string]string{"file": "f", "tree/deep/x.txt": "deep", "tree/README.md": "no"})
	if err := os.WriteFile(filepath.Join(dir, "archive.tar"), tarOf(t, map[string]string{"inner": "unpacked"}), 0o644); err != nil {
		t.Fatal(err)
	}
	got := r.output(Request{Context: dir}, "triggered", "work/env", "work/pwd", "work/heredoc", "work/owned",
		"parents/tree/deep/x.txt", "excluded/deep/x.txt", "unpacked/inner", "work/bound", "work/alone")
	want := map[string]string{
		"triggered": "triggered", "work/env": "1 two words", "work/pwd": "/work", "work/heredoc": "literal $A", "work/owned": "f",
		"parents/tree/deep/x.txt": "deep", "excluded/deep/x.txt": "deep", "unpacked/inner": "unpacked", "work/bound": "deep", "work/alone": "alone",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	r.solve(Request{Context: dir, Tags: []string{"x"}})
	c := r.config("x").Config
	if c.StopSignal != "SIGUSR1" || c.WorkingDir != "/work" || c.Healthcheck == nil || len(c.ExposedPorts) != 1 || len(c.Volumes) != 1 || c.Labels["k"] != "v" || c.Entrypoint[0] != "/bin/sh" {
		t.Errorf("configuration is %+v", c)
	}
}
