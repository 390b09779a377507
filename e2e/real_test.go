package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDebianInstallsPackages(t *testing.T) {
	t.Parallel()
	needDebian(t)
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"Dockerfile": `FROM @debian
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends cron file
RUN file -b /bin/dash > /kind
`})
		img := d.image(ctx)
		if e := img.tree["kind"]; e.Size == 0 {
			t.Errorf("/kind is %+v", e)
		}
		// The package's scripts gave the file its group and mode.
		e := img.tree["usr/bin/crontab"]
		if e.Mode != "2755" || e.Owner == "0:0" {
			t.Errorf("crontab is %+v, want setgid and of group crontab", e)
		}
		for _, name := range img.tree.names() {
			if strings.HasSuffix(name, ".deb") || strings.HasPrefix(name, "var/lib/apt/lists/deb") {
				t.Errorf("%s of a cache mount is in the image", name)
			}
		}
		if got := d.steps(ctx); len(got) != 0 {
			t.Errorf("the second build executed %q", got)
		}
		if out := d.run("run", "--rm", d.tagged(ctx), "dpkg-query", "-W", "-f", "${Status}", "cron"); out != "install ok installed" {
			t.Errorf("dpkg says %q", out)
		}
	})
}

// tagged builds, all of it cached, under a name.
func (d *den) tagged(ctx string, args ...string) string {
	d.t.Helper()
	name := fmt.Sprintf("tagged:%d", pushed.Add(1))
	d.run(append(append([]string{"build", "-t", name}, args...), ctx)...)
	return name
}

const goDockerfile = `FROM @go AS build
WORKDIR /src
ENV GOCACHE=/cache
COPY . .
RUN --mount=type=cache,target=/cache go build -trimpath -o /out/app .
FROM scratch
COPY --from=build /out/app /app
ENTRYPOINT ["/app"]
`

func TestGoProgramBuildsInStagesWithItsCache(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": goDockerfile, "go.mod": "module hello.test/app\n\ngo 1.24\n", "main.go": "package main\n\nfunc main() { println(greeting) }\n",
		"greeting.go": "package main\n\nconst greeting = \"one\"\n", ".dockerignore": "Dockerfile\n"})
	started := time.Now()
	img := d.image(ctx)
	cold := time.Since(started)
	if len(img.manifest.Layers) != 1 || len(img.tree) != 1 {
		t.Errorf("the image has %d layers with %q", len(img.manifest.Layers), img.tree.names())
	}
	r := d.try(nil, "run", "--rm", d.tagged(ctx))
	if r.code != 0 || r.err != "one\n" {
		t.Errorf("exit %d: %q", r.code, r.err)
	}
	d.fill(ctx, files{"greeting.go": "package main\n\nconst greeting = \"two\"\n"})
	started = time.Now()
	equal(t, "executed", []string{
		"[build 3/4] COPY . .", "[build 4/4] RUN --mount=type=cache,target=/cache go build -trimpath -o /out/app .",
		"[stage-1 1/1] COPY --from=build /out/app /app"}, d.steps(ctx))
	warm := time.Since(started)
	r = d.try(nil, "run", "--rm", d.tagged(ctx))
	if r.code != 0 || r.err != "two\n" {
		t.Errorf("exit %d: %q", r.code, r.err)
	}
	t.Logf("cold %v, one file changed %v", cold.Round(time.Millisecond), warm.Round(time.Millisecond))
}

const bigContext = 20_000

// fillBig makes a context of 20,000 files; the last stage copies only late/.
func fillBig(d *den) string {
	d.t.Helper()
	ctx := d.dir(files{"Dockerfile": `FROM @small AS early
COPY src /app
RUN find /app -type f | wc -l > /count
FROM @small
COPY --from=early /count /count
RUN cat /count > /seen
COPY late /late
RUN cat /late/* > /all
`, "late/a": "a", "late/b": "b", "unused/file": "x"})
	n := 0
	for i := 0; n < bigContext; i++ {
		dir := filepath.Join(ctx, "src", fmt.Sprintf("%03d", i), "deep")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			d.t.Fatal(err)
		}
		for j := 0; j < 40 && n < bigContext; j++ {
			text := strings.Repeat(fmt.Sprintf("%d %d\n", i, j), j*4+1)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d.txt", j)), []byte(text), 0o644); err != nil {
				d.t.Fatal(err)
			}
			n++
		}
	}
	d.own(ctx)
	return ctx
}

func TestBigContextUnchangedExecutesAndUnpacksNothing(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := fillBig(d)
		d.tree(ctx).holds(t, "seen", fmt.Sprintf("%d\n", bigContext))
		before := d.layers()

		r, rss := d.measured("build", "--progress=rawjson", ctx)
		for _, v := range vertices(t, r.err) {
			internal := strings.HasPrefix(v.Name, "[internal]") || strings.HasPrefix(v.Name, "exporting")
			if !v.Cached && !internal && !strings.Contains(v.Name, "FROM") {
				t.Errorf("the unchanged build did %q", v.Name)
			}
		}
		equal(t, "layers of the store", before, d.layers())
		t.Logf("unchanged: %v, %d MiB", r.took.Round(time.Millisecond), rss>>20)
		if rss > 256<<20 {
			t.Errorf("the build took %d MiB of memory", rss>>20)
		}

		d.fill(ctx, files{"unused/file": "changed", "unused/new": "new"})
		equal(t, "executed after a file that no COPY names", []string(nil), d.steps(ctx))
		equal(t, "layers of the store", before, d.layers())

		d.fill(ctx, files{"late/b": "changed"})
		equal(t, "executed after a file of the late stage", []string{"[stage-1 4/5] COPY late /late", "[stage-1 5/5] RUN cat /late/* > /all"}, d.steps(ctx))

		d.fill(ctx, files{"src/000/deep/f0.txt": "changed", "src/000/deep/extra": "one more"})
		got := d.tree(ctx)
		got.holds(t, "seen", fmt.Sprintf("%d\n", bigContext+1))
	})
}

func TestTouchedFilesAreNotChanged(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "same"})
	d.run("build", ctx)
	now := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(ctx, "f"), now, now); err != nil {
		t.Fatal(err)
	}
	equal(t, "executed after touch", []string(nil), d.steps(ctx))
	if err := os.Chmod(filepath.Join(ctx, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	equal(t, "executed after chmod", []string{"[1/1] COPY f /"}, d.steps(ctx))
}

func TestOtherDefinitionsWithTheSameResultShareWhatFollows(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	dockerfile := "FROM @small\nRUN %s\nRUN echo after > /after\n"
	ctx := d.dir(files{"Dockerfile": fmt.Sprintf(dockerfile, "true")})
	d.run("build", ctx)
	d.fill(ctx, files{"Dockerfile": fmt.Sprintf(dockerfile, ":")})
	equal(t, "executed", []string{"[2/3] RUN :"}, d.steps(ctx))
}
