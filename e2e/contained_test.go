package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A step on the weakest rung that takes all it can get, or attacks the kernel that it has, is
// contained and reported, and the next build finds everything as it was.
func TestGreedyStepsInARestrictedContainerAreContained(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	restricted := append([]string{"--user=1000:1000", "--security-opt=seccomp=" + currentProfile(t)}, hardened...)
	for name, c := range map[string]struct{ step, word string }{
		"forks without end": {"toolbox forks", "pids-limit"},
		"fills memory":      {"toolbox eat 4096", "memory"},
		"fills it at once":  {"dd if=/dev/zero of=/dev/null bs=2000M count=1", "memory"},
		"fills the disk":    {"cat /dev/zero > /x", "no space left"},
		"fills a mount":     {"cat /dev/zero > /c/x", "no space left"},
		"random calls":      {"toolbox storm 25 | grep survived", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{
				"ctx/Dockerfile":  "FROM @small\nRUN --mount=type=cache,target=/c " + c.step + "\n",
				"next/Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c rm -f /c/x; echo fits > /fits\n",
			})
			if err := os.Chmod(d.home, 0o777); err != nil {
				t.Fatal(err)
			}
			flags := append([]string{"--tmpfs=/var/lib/den:exec,mode=1777,size=96m", "--tmpfs=/fill:mode=1777,size=64m", "-e", "DEN_STORE=/var/lib/den"}, restricted...)
			out, err := outer{docker, d, flags}.sh(`head -c 60000000 /dev/zero > /fill/f # which counts as memory, too
if den build --progress=plain ctx 2>&1; then echo the step succeeds; fi
den build -q --no-cache -t next next; den run --rm next cat /fits; den store verify >/dev/null
left=$(ps -o args) # alone: a process that is just executing has no arguments
echo "$left" | grep -v -e 'ps -o' -e '^COMMAND' -e 'sh -ec' -e init || echo nobody is left`)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(out, "fits\nnobody is left\n") {
				t.Errorf("the next build, or what is left:\n%s", tail(out))
			}
			if !strings.Contains(strings.ToLower(out), c.word) || strings.Contains(out, "the step succeeds") != (c.word == "") {
				t.Errorf("den does not say %q:\n%s", c.word, tail(out))
			}
		})
	}
}

// One step has a secret, and den credentials; another one, at the same time, looks everywhere.
func TestSecretsOfAStepAreNotToBeFoundFromAnother(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		d, ctx := spied(d)
		text := d.feed(nil, "build", "--secret", "id=s,src="+filepath.Join(d.home, "s"), "--secret", "id=e,env=TOKEN", "-o", "-", ctx)
		equal(t, "what the spy says", "looked\nlooked\nlooked\n", fileOf(t, text, "spied"))
		if sight := fileOf(t, text, "sight"); !strings.Contains(sight, "environ\n") || !strings.Contains(sight, "cmdline\n") {
			t.Errorf("the spy is blind: it says %q", sight)
		}
	})
}

// spied is d with secrets and credentials, and a context whose stages run at the same time: one
// has the secrets until the other has looked.
func spied(d *den) (*den, string) {
	look := func(halves string) string { return "toolbox spy " + halves + " " + d.home + " >> /spied" }
	ctx := d.dir(files{"Dockerfile": `FROM @small AS has
RUN --mount=type=cache,target=/c --mount=type=secret,id=s --mount=type=secret,id=e,env=E touch /c/has; until [ -e /c/looked ]; do sleep 0.1; done; test "$E"
FROM @small AS spy
RUN --mount=type=cache,target=/c until [ -e /c/has ]; do sleep 0.1; done; OWN=in-sight toolbox spy in- sight > /sight; ` + look("hush-of- the-file") + "; " + look("hush-of- the-environment") + "; " + look("aHVzaC1vZi 10aGUtcmVnaXN0cnk6") + `; touch /c/looked
FROM scratch
COPY --from=spy /spied /sight /
COPY --from=has /etc/passwd /
`})
	d.fill(d.home, files{"s": "hush-of-the-file", "docker/config.json": `{"auths":{"registry.invalid":{"auth":"aHVzaC1vZi10aGUtcmVnaXN0cnk6"}}}`})
	return d.with("TOKEN=hush-of-the-environment", "DOCKER_CONFIG="+filepath.Join(d.home, "docker")), ctx
}
