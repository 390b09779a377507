package e2e

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContextsArriveOnStandardInput(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		out := filepath.Join(d.home, "out")
		archive := tarBytes(t, files{"Dockerfile": "FROM scratch\nCOPY in /in\n", "in": "tar\n"})
		d.feed(bytes.NewReader(archive), "build", "-o", out, "-")
		checkFile(t, filepath.Join(out, "in"), "tar\n")

		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(tarBytes(t, files{"deep/other.Dockerfile": "FROM scratch\nCOPY in /in2\n", "in": "gzip\n"}))
		z.Close()
		d.feed(&packed, "build", "-o", out, "-f", "deep/other.Dockerfile", "-")
		checkFile(t, filepath.Join(out, "in2"), "gzip\n")

		d.feed(strings.NewReader("FROM scratch\nCOPY <<x /dockerfile\nalone\nx\n"), "build", "-o", out, "-")
		checkFile(t, filepath.Join(out, "dockerfile"), "alone\n")

		d.feed(strings.NewReader("FROM scratch\nCOPY in /both\n"), "build", "-o", out, "-f", "-", d.dir(files{"in": "context\n"}))
		checkFile(t, filepath.Join(out, "both"), "context\n")
	})
}

func checkFile(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != want {
		t.Errorf("%s: %q, %v, want %q", path, b, err, want)
	}
}

func TestDockerfileMayLieOutsideTheContext(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	outside := d.dir(files{"My.Dockerfile": "FROM scratch\nCOPY in /\n"})
	d.tree("-f", filepath.Join(outside, "My.Dockerfile"), d.dir(files{"in": "x"})).holds(t, "in", "x")
	d.fails([]string{"build", d.dir(files{"in": "x"})}, "Dockerfile")
	d.fails([]string{"build", filepath.Join(d.home, "absent")}, "absent")
}

func TestTarballsOverHTTPAreContexts(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	url := fileServer(t, map[string][]byte{
		"ctx.tar":    tarBytes(t, files{"Dockerfile": "FROM scratch\nCOPY in /in\n", "in": "http\n"}),
		"Dockerfile": []byte("FROM scratch\nCOPY <<x /alone\nyes\nx\n"),
	})
	d.tree(url+"/ctx.tar").holds(t, "in", "http\n")
	d.tree(url+"/Dockerfile").holds(t, "alone", "yes\n")
	d.fails([]string{"build", url + "/absent.tar"}, "404")
}

func TestContextsAndDockerfilesComeFromDifferentPlaces(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	git, _ := gitServer(t, d)
	packed := gzipped(tarBytes(t, files{"Dockerfile": "FROM scratch\nCOPY in /in\n", "in": "packed\n", "deep/": "", "deep/Other": "FROM scratch\nCOPY in /other\n"}))
	url := fileServer(t, map[string][]byte{"ctx.tar.gz": packed, "sub/Dockerfile": []byte("FROM scratch\nCOPY in /fetched\n")})
	ctx := d.dir(files{"in": "local\n"})
	feed := func(stdin string, args ...string) tree {
		t.Helper()
		tr := tree{}
		tr.apply(t, strings.NewReader(d.feed(strings.NewReader(stdin), append([]string{"build", "-o", "-"}, args...)...)))
		return tr
	}
	d.tree(url+"/ctx.tar.gz").holds(t, "in", "packed\n")
	d.tree("-f", "deep/Other", url+"/ctx.tar.gz").holds(t, "other", "packed\n")
	d.tree("-f", url+"/sub/Dockerfile", ctx).holds(t, "fetched", "local\n")
	feed("FROM scratch\nCOPY version /v\n", "-f", "-", git+"#v1").holds(t, "v", "one\n")
	feed("FROM scratch\nCOPY in /i\n", "-f", "-", url+"/ctx.tar.gz").holds(t, "i", "packed\n")
	feed("FROM base\nCOPY --from=named in /n\n", "--build-context", "named="+ctx, "--build-context", "base=docker-image://"+smallImage(t), "-").holds(t, "n", "local\n")
	d.fails([]string{"build", "-f", "-", "-"}, "stdin")
	d.fails([]string{"build", "-f", "absent", git}, "absent")
	// A query says what a fragment says.
	d.tree(git+"?tag=v1").holds(t, "version", "one\n")
	d.tree(git+"?branch=main&subdir=sub").holds(t, "inner", "inner\n")
}

func TestNamedContextReplacesStageAndImage(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	layout := filepath.Join(d.home, "layout")
	d.run("build", "-o", "type=oci,tar=false,dest="+layout, "-t", "x:tagged", d.dir(files{"Dockerfile": "FROM scratch\nCOPY <<x /from-layout\nlayout\nx\n"}))
	ctx := d.dir(files{"Dockerfile": "FROM @small AS stage\nRUN exit 1\nFROM absent.invalid/image:1 AS other\nFROM scratch\nCOPY --from=stage . /s/\nCOPY --from=other /from-layout /o\nCOPY --from=tagged /from-layout /t\n"})
	got := d.tree("--build-context", "stage="+d.dir(files{"in": "replaced\n"}), "--build-context", "absent.invalid/image:1=oci-layout://"+layout+":tagged",
		"--build-context", "tagged=oci-layout://"+layout+":tagged", ctx)
	got.holds(t, "s/in", "replaced\n")
	got.holds(t, "o", "layout\n")
	got.holds(t, "t", "layout\n")
	d.fails([]string{"build", "--build-context", "stage=" + d.home + "/absent", ctx}, "absent")
	d.fails([]string{"build", "--build-context", "tagged=oci-layout://" + layout + ":gone", "--build-context", "stage=" + d.dir(files{}), "--build-context", "absent.invalid/image:1=docker-image://" + smallImage(t),
		d.dir(files{"Dockerfile": "FROM tagged\n"})}, "gone")
}

func TestNamedContextsOfEveryKind(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	gitURL, _ := gitServer(t, d)
	archive := tarBytes(t, files{"in": "http\n"})
	url := fileServer(t, map[string][]byte{"ctx.tar": archive}) // stays a file, called context
	layout := filepath.Join(d.home, "layout")
	d.run("build", "-o", "type=oci,tar=false,dest="+layout, "-t", "x:1", d.dir(files{"Dockerfile": "FROM scratch\nCOPY <<x /from-layout\nlayout\nx\n"}))
	m := readIndex(t, layout)
	ctx := d.dir(files{"Dockerfile": `FROM replaced AS stage
COPY --from=dir in /dir
COPY --from=git version /git
COPY --from=http context /http.tar
COPY --from=layout from-layout /layout
COPY --from=image /etc/passwd /image
RUN --mount=from=dir,target=/mnt cat /mnt/in > /mounted
`})
	got := d.tree("--build-context", "dir="+d.dir(files{"in": "dir\n"}), "--build-context", "git="+gitURL, "--build-context", "http="+url+"/ctx.tar",
		"--build-context", "layout=oci-layout://"+layout+"@"+m.Manifests[0].Digest, "--build-context", "image=docker-image://"+smallImage(t),
		"--build-context", "replaced=docker-image://"+smallImage(t), ctx)
	for name, text := range map[string]string{"dir": "dir\n", "git": "two\n", "http.tar": string(archive), "layout": "layout\n", "mounted": "dir\n"} {
		got.holds(t, name, text)
	}
	if got["image"].Sum != got["etc/passwd"].Sum {
		t.Error("the file of the image is another")
	}
}

func TestProxiesReachStepsAndStayOutOfImagesAndKeys(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN env | grep -i _proxy | sort | grep -v NO_PROXY > /dev/null; test \"$HTTP_PROXY\" = \"$https_proxy\" && test -n \"$HTTP_PROXY\" && echo proxied > /proxied\n"})
	noProxy := "127.0.0.1,localhost"
	first := d.with("HTTP_PROXY=http://proxy-one.invalid:1", "https_proxy=http://proxy-one.invalid:1", "NO_PROXY="+noProxy)
	img := first.image(ctx)
	img.tree.holds(t, "proxied", "proxied\n")
	second := d.with("HTTP_PROXY=http://proxy-two.invalid:1", "HTTPS_PROXY=http://proxy-two.invalid:1", "NO_PROXY="+noProxy)
	if got := second.steps("--build-arg", "http_proxy=http://proxy-three.invalid:1", ctx); len(got) != 0 {
		t.Errorf("another proxy executed %q", got)
	}
	if at := grepTree(t, d.store(), "proxy-one.invalid"); at != "" {
		t.Errorf("the proxy's address is in %s", at)
	}
	cfg := d.dir(files{"config.json": `{"proxies":{"default":{"httpProxy":"http://from-config.invalid:1","noProxy":"` + noProxy + `"}}}`})
	ctx = d.dir(files{"Dockerfile": "FROM @small\nRUN echo $HTTP_PROXY > /proxy\n"})
	d.with("DOCKER_CONFIG="+cfg).tree(ctx).holds(t, "proxy", "http://from-config.invalid:1\n")
}

func TestPullsGoThroughTheProxy(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	proxy, seen := recordingProxy(t)
	// Loopback never goes through a proxy, so the registry has a name of its own.
	name := "registry.den.invalid:80/" + strings.TrimPrefix(smallImage(t), env.registry+"/")
	d.with("HTTP_PROXY="+proxy, "http_proxy="+proxy).run("--insecure-registry", "registry.den.invalid:80", "pull", name)
	if len(seen()) == 0 {
		t.Error("the proxy saw nothing")
	}
}

func TestChecksAndSubrequestsBuildNothing(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	good := d.dir(files{"Dockerfile": "FROM scratch\nCOPY . /\n"})
	d.run("build", "--check", good)
	bad := d.dir(files{"Dockerfile": "FROM scratch as base\nARG DESCRIBED=1\nMAINTAINER me\nFROM base AS second\nENTRYPOINT /bin/sh\n"})
	r := d.try(nil, "build", "--check", bad)
	if text := r.out + r.err; r.code != 1 || !strings.Contains(text, "FromAsCasing") || !strings.Contains(text, "MaintainerDeprecated") || !strings.Contains(text, "JSONArgsRecommended") {
		t.Errorf("exit %d\n%s", r.code, text)
	}
	if out := d.run("build", "--call=targets", bad); !strings.Contains(out, "base") || !strings.Contains(out, "second") {
		t.Errorf("targets:\n%s", out)
	}
	if out := d.run("build", "--call=outline", "--target=base", bad); !strings.Contains(out, "DESCRIBED") {
		t.Errorf("outline:\n%s", out)
	}
	if n := len(d.layers()); n != 0 {
		t.Errorf("the store has %d layers", n)
	}
}

// recordingProxy forwards plain HTTP to the test registry whatever host is
// asked for, and remembers the URLs.
func recordingProxy(t *testing.T) (url string, seen func() []string) {
	t.Helper()
	return newProxy(t, needRegistry(t))
}

func TestBuildsAreTheSameFromEveryWorkingDirectory(t *testing.T) {
	t.Parallel()
	need(t, "sh")
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small\nCOPY f /\nRUN cat f > /g\n", "f": "f"})
	first := strings.TrimSpace(d.run("build", "-q", ctx))
	cmd := d.command(t.Context(), "build", "-q", ".")
	cmd.Dir = ctx
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != first || !strings.HasPrefix(got, "sha256:") {
		t.Errorf("the image is %s, from elsewhere %s", got, first)
	}
}
