package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildCacheAndCacheMountsGoToAnotherMachineInAFile(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := d.dir(files{"f": "f", "Dockerfile": `FROM @small
COPY f /f
RUN --mount=type=cache,target=/c,id=modules echo fetched > /c/module && chown 33:44 /c/module
RUN --mount=type=cache,target=/c,id=modules cat /c/module > /got
`})
		first := d.run("build", "-q", "--progress=quiet", ctx)
		file := filepath.Join(d.home, "cache.tar.zst")
		if r := d.try(nil, "store", "export", "-o", file); r.code != 0 || !strings.Contains(r.err, "1 cache mounts are written, 0 were left out") {
			t.Fatalf("export: %+v", r)
		}
		other := d.with("DEN_STORE="+filepath.Join(d.home, "other"), "XDG_DATA_HOME="+filepath.Join(d.home, "other-data"))
		other.run("store", "import", "-i", file, "--scope", "default", "--cache-mounts")
		other.run("store", "verify", "--deep")
		r := other.try(nil, "build", "--progress=rawjson", "-t", "again", ctx)
		if r.code != 0 {
			t.Fatalf("build: %+v", r)
		}
		if ran := executed(t, r.err); len(ran) > 0 {
			t.Errorf("executed again: %q", ran)
		}
		if id := other.run("images", "-q", "--no-trunc", "again"); strings.TrimSpace(id) != strings.TrimSpace(first) {
			t.Errorf("the image is %s, was %s", id, first)
		}
		out := other.run("build", "--no-cache", "-q", "-t", "uses", d.dir(files{"Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c,id=modules stat -c '%u:%g' /c/module > /got && cat /c/module >> /got\n"}))
		if got := other.run("run", "--rm", strings.TrimSpace(out), "cat", "/got"); got != "33:44\nfetched\n" {
			t.Errorf("the cache mount holds %q", got)
		}
	})
}
