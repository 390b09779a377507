package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryConfigurationInstructionReachesTheImage(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": `FROM @small
LABEL one=1 two="two words"
ENV A=1 B="two words"
ENV OLD style
EXPOSE 80 53/udp
VOLUME ["/data"]
VOLUME /more
WORKDIR /work/here
WORKDIR sub
USER app:extra
STOPSIGNAL SIGUSR1
SHELL ["/bin/sh", "-e", "-c"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=2s --retries=4 CMD wget -q localhost
MAINTAINER Somebody <some@body.test>
ONBUILD RUN echo later
ENTRYPOINT ["/bin/busybox"]
CMD ["echo", "hi"]
`})
	img := d.image(ctx)
	got := img.config.Config
	want := containerConfig{
		User: "app:extra", ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
		Env:        []string{basePath, "A=1", "B=two words", "OLD=style"},
		Entrypoint: []string{"/bin/busybox"}, Cmd: []string{"echo", "hi"},
		Volumes: map[string]struct{}{"/data": {}, "/more": {}}, WorkingDir: "/work/here/sub",
		Labels: map[string]string{"one": "1", "two": "two words"}, StopSignal: "SIGUSR1",
		OnBuild: []string{"RUN echo later"}, Shell: []string{"/bin/sh", "-e", "-c"},
	}
	health := got.Healthcheck
	got.Healthcheck = nil
	equal(t, "configuration", want, got)
	if health == nil || health.Interval != 5*time.Second || health.Timeout != 3*time.Second || health.StartPeriod != 2*time.Second || health.Retries != 4 ||
		!slices.Equal(health.Test, []string{"CMD-SHELL", "wget -q localhost"}) {
		t.Errorf("health check is %+v", health)
	}
	layers := 0
	for _, h := range img.config.History {
		if !h.EmptyLayer {
			layers++
		}
	}
	if layers > len(img.config.RootFS.DiffIDs) || len(img.config.History) < 15 {
		t.Errorf("history has %d entries, %d with layers; layers are %d", len(img.config.History), layers, len(img.config.RootFS.DiffIDs))
	}
	img.tree.is(t, "work/here/sub", "dir 0755 0:0")
}

func TestRunSeesEnvironmentUserShellAndDirectory(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	const failing = "RUN false; touch never || true\n"
	dockerfile := `FROM @small
ARG FROM_ARG=default
ENV FROM_ENV=env FROM_BOTH=$FROM_ARG-more
WORKDIR /work
RUN echo "$FROM_ARG $FROM_ENV $FROM_BOTH" > args; pwd > pwd; id > root; echo $HOME > roothome
RUN ["/bin/sh", "-c", "echo $0 exec form > exec"]
SHELL ["/bin/sh", "-e", "-c"]
` + failing + `SHELL ["/bin/busybox", "ash", "-c"]
RUN tr '\0' ' ' < /proc/$$/cmdline > shell
RUN chown app:app /work
USER app
RUN id > user; echo $HOME > userhome
USER 1234
RUN id -u > /tmp/nobody
USER app:extra
RUN id -gn > group
`
	ctx := d.dir(files{"Dockerfile": dockerfile})
	r := d.try(nil, "build", ctx)
	if r.code == 0 || !strings.Contains(r.err, "exit code: 1") {
		t.Fatalf("sh -e goes on after a failure: %d\n%s", r.code, r.err)
	}
	d.fill(ctx, files{"Dockerfile": strings.Replace(dockerfile, failing, "", 1)})
	got := d.tree("--build-arg", "FROM_ARG=given", ctx)
	got.holds(t, "work/args", "given env given-more\n")
	got.holds(t, "work/pwd", "/work\n")
	got.holds(t, "work/root", "uid=0(root) gid=0(root) groups=0(root)\n")
	got.holds(t, "work/roothome", "/root\n")
	got.holds(t, "work/exec", "/bin/sh exec form\n")
	got.holds(t, "work/user", "uid=1000(app) gid=1000(app) groups=44(extra),1000(app)\n")
	got.holds(t, "work/userhome", "/home/app\n")
	got.holds(t, "tmp/nobody", "1234\n")
	got.holds(t, "work/group", "extra\n")
	got.is(t, "work/user", "file 0644 1000:1000")
	got.lacks(t, "work/never")
}

func TestArgumentsOfPlatformsAndScopes(t *testing.T) {
	t.Parallel()
	d := newDen(t).with("UNSET=from the environment")
	ctx := d.dir(files{"Dockerfile": `ARG BASE=@small
ARG GLOBAL=global
FROM ${BASE} AS one
ARG GLOBAL
ARG UNSET
ARG TARGETPLATFORM TARGETOS TARGETARCH BUILDPLATFORM TARGETSTAGE
RUN echo "$GLOBAL ${UNSET:-none} $TARGETPLATFORM $TARGETOS $TARGETARCH $BUILDPLATFORM $TARGETSTAGE" > /args
FROM --platform=$BUILDPLATFORM one AS two
RUN echo "${GLOBAL:-not inherited}" > /scope
`})
	arch := goarch()
	got := d.tree(ctx)
	got.holds(t, "args", "global none linux/"+arch+" linux "+arch+" linux/"+arch+" two\n")
	got = d.tree("--build-arg", "UNSET", "--target", "one", ctx)
	got.holds(t, "args", "global from the environment linux/"+arch+" linux "+arch+" linux/"+arch+" one\n")
	d.fails([]string{"build", "--build-arg", "BASE=", ctx}, "base name")
}

func TestTriggersRunInTheImageBuiltUpon(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	d.run("build", "-t", "trigger:1", d.dir(files{"Dockerfile": "FROM @small\nONBUILD COPY name /name\nONBUILD RUN echo hello $(cat /name) > /greeting\n"}))
	ctx := d.dir(files{"Dockerfile": "FROM trigger:1\nRUN cat /greeting > /after\n", "name": "world\n"})
	got := d.tree(ctx)
	got.holds(t, "after", "hello world\n")
}

func TestHeredocsWriteFilesAndRunScripts(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": `# syntax=docker/dockerfile:1
FROM @small
ARG WHO=world
RUN <<EOF
echo "hello $WHO" > /shell
echo "second" >> /shell
EOF
RUN <<"EOF" cat > /quoted
$WHO stays
EOF
RUN <<EOF
#!/bin/busybox ash
echo "an interpreter of its own: $(tr '\0' ' ' < /proc/$$/cmdline | cut -d' ' -f1,2)" > /shebang
EOF
COPY <<one <<"two" /copied/
for $WHO
one
for $WHO
two
COPY --chmod=0750 --chown=app:33 <<-EOF /script
	#!/bin/sh
	echo tabs go
EOF
ADD <<EOF /added
added
EOF
`})
	got := d.tree(ctx)
	got.holds(t, "shell", "hello world\nsecond\n")
	got.holds(t, "quoted", "$WHO stays\n")
	got.holds(t, "shebang", "an interpreter of its own: /bin/busybox ash\n")
	got.holds(t, "copied/one", "for world\n")
	got.holds(t, "copied/two", "for $WHO\n")
	got.holds(t, "script", "#!/bin/sh\necho tabs go\n")
	got.is(t, "script", "file 0750 1000:33")
	got.holds(t, "added", "added\n")
}

func TestStagesRunOnlyWhenTheTargetNeedsThem(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": `FROM @small AS base
FROM base AS broken
RUN echo last words; exit 3
FROM base AS wanted
RUN echo wanted > /wanted
FROM broken
`})
	got := d.tree("--target", "wanted", ctx)
	got.holds(t, "wanted", "wanted\n")
	d.fails([]string{"build", ctx}, `process "/bin/sh -c echo last words; exit 3" did not complete successfully: exit code: 3`,
		"Dockerfile:3", ">>> RUN echo last words", "--------------------", "last words")
	d.fails([]string{"build", "--target", "wnted", ctx}, "wnted")
	d.fails([]string{"build", "--traget", "x", ctx}, "--target")
}

func TestFlagsOfTheBuildReachStepsAndImage(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": `FROM @small
RUN grep den.test /etc/hosts > /hosts; ulimit -n > /files; df -m /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2 > /shm
RUN --network=none ls /sys/class/net > /none
`})
	name := newName(t)
	d.run("build", "--add-host", "den.test:10.1.2.3", "--ulimit", "nofile=1111:2222", "--shm-size", "32m",
		"--label", "from=flag", "--annotation", "org.test.note=hello", "--push", "-t", name, "-t", name+":second", ctx)
	img := fetchImage(t, name)
	img.tree.holds(t, "hosts", "10.1.2.3\tden.test\n")
	img.tree.holds(t, "files", "1111\n")
	img.tree.holds(t, "shm", "32\n")
	img.tree.holds(t, "none", "lo\n")
	equal(t, "labels", map[string]string{"from": "flag"}, img.config.Config.Labels)
	if img.manifest.Annotations["org.test.note"] != "hello" {
		t.Errorf("annotations are %v", img.manifest.Annotations)
	}
	if _, second := fetchManifest(t, name+":second"); second != img.digest {
		t.Errorf("the second name is of %s, the first of %s", second, img.digest)
	}
	// These are mounts in the step, not parts of the image.
	img.tree.lacks(t, "etc/hosts", "etc/resolv.conf", "dev/null", "dev/shm", "proc/self")
}

func TestNoCacheFilterRunsOneStageAgain(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small AS one\nRUN echo 1 > /1\nFROM @small AS two\nRUN echo 2 > /2\nFROM scratch\nCOPY --from=one /1 /\nCOPY --from=two /2 /\n"})
	d.run("build", ctx)
	equal(t, "executed", []string{"[two 2/2] RUN echo 2 > /2"}, d.steps("--no-cache-filter", "two", ctx))
	if got := d.steps("--no-cache", ctx); len(got) != 4 {
		t.Errorf("--no-cache executed %q", got)
	}
}

func TestSyntaxLineNeedsNoPull(t *testing.T) {
	t.Parallel()
	d := newDen(t).with("DEN_MIRROR=http://127.0.0.1:1")
	for _, syntax := range []string{"docker/dockerfile:1", "docker/dockerfile:1.7-labs", "docker.io/docker/dockerfile", "docker/dockerfile-upstream:master"} {
		ctx := d.dir(files{"Dockerfile": "# syntax=" + syntax + "\nFROM scratch\nCOPY f /\n", "f": syntax})
		d.tree(ctx).holds(t, "f", syntax)
	}
}

func TestDockerfileBeyondItsLimitIsRefused(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{})
	big := "FROM scratch\n" + strings.Repeat("# "+strings.Repeat("x", 1022)+"\n", 17<<10)
	if err := os.WriteFile(ctx+"/Dockerfile", []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	d.fails([]string{"build", ctx}, "Dockerfile")
	if len(d.leftovers()) > 0 {
		t.Errorf("left over: %q", d.leftovers())
	}
}
