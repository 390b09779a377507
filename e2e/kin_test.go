package e2e

import (
	"strings"
	"testing"
)

// One store has layers of rungs that keep them in different forms: each builds on, copies from, finds,
// runs and hands out what the other has built.
func TestRungsOfOneStoreBuildOnEachOther(t *testing.T) {
	t.Parallel()
	needRoot(t)
	strong := newDen(t).with("DEN_ISOLATION=privileged")
	weak := strong.with("DEN_ISOLATION=sentry")
	steps := strong.dir(files{"Dockerfile": `ARG BASE=scratch
FROM $BASE AS first
ARG FIRST
RUN mkdir /d && echo here >> /made && chown 33:44 /made && chmod 4755 /made
FROM $BASE
COPY --from=first /made /copied
RUN echo here >> /copied && rm -f /made
`})
	base := smallImage(t)
	for first, way := range map[string][2]*den{"strong": {strong, weak}, "weak": {weak, strong}} {
		here, there := way[0], way[1]
		here.run("build", "-q", "-t", "one", "--build-arg", "BASE="+base, "--build-arg", "FIRST="+first, steps)
		there.run("build", "-q", "-t", "two", "--build-arg", "BASE=one", steps)
		if got := here.run("run", "--rm", "two", "cat", "/copied"); got != "here\nhere\n" {
			t.Errorf("an image of both rungs has %q", got)
		}
		if out := here.try(nil, "build", "--progress=plain", "--build-arg", "BASE=one", steps); out.code != 0 || strings.Count(out.err, "CACHED\n") != 4 {
			t.Errorf("exit %d, not all is found:\n%s", out.code, out.err)
		}
		here.run("rmi", "-f", "two")
	}
	strong.run("store", "verify", "--deep")
}

// The same for what docker does with images and containers.
func TestDockerOnOneRungUsesImagesOfAnother(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := newDen(t).with("DEN_ISOLATION=privileged")
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN mkdir /d && echo old > /d/old\nRUN rm -r /d && mkdir /d && echo below > /d/f\n"})
	d.run("build", "-q", "-t", "kin", ctx)
	s := serveAPI(t, d.with("DEN_ISOLATION=sentry"))
	s.docker("run", "--name", "user", "kin", "sh", "-c", "echo more >> /d/f")
	if got := s.docker("diff", "user"); !strings.Contains(got, "C /d/f") {
		t.Errorf("diff: %s", got)
	}
	s.docker("cp", "user:/d/f", d.home+"/f")
	s.docker("commit", "user", "more")
	s.docker("save", "-o", d.home+"/more.tar", "kin", "more")
	if got := d.run("run", "--rm", "more", "sh", "-c", "ls /d; cat /d/f"); got != "f\nbelow\nmore\n" {
		t.Errorf("what the other rung has committed: %q", got)
	}
}
