package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

const chrootDockerfile = `FROM @small
RUN --mount=type=cache,target=/c --mount=type=secret,id=s --mount=type=tmpfs,target=/scratch \
    mkdir /srv && cat /run/secrets/s > /srv/file && chown 33:44 /srv/file && chmod 4755 /srv/file && echo kept >> /c/x && touch /scratch/x && echo > /dev/null
COPY f /f
RUN --mount=type=cache,target=/c cat /c/x > /srv/cached && mknod /srv/null c 1 3
USER app
RUN id -u > /tmp/id && ! mkdir /srv/mine 2>/dev/null
`

func TestTrustedStepsRunInAChrootOfAPlainContainer(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": chrootDockerfile, "ctx/f": "f", "s": "secret"})
	o := outer{docker, d, []string{"-e", "DEN_STORE=/work/store", "-e", "DEN_ISOLATION=chroot"}}
	out, err := o.sh(`den build --secret id=s,src=s -t nested -o type=tar,dest=/work/out.tar ctx 2>&1
		den build --secret id=s,src=s -q -t nested ctx; den info
		mkdir vol; echo old > vol/f
		den run --rm -u 0 -v /work/vol:/v nested sh -c 'cat /tmp/id /v/f; echo new > /v/g' </dev/null
		den run --rm -u 0 nested sh -c 'sleep 1000 & stat -c "%a %u:%g" /srv/file'
		cat vol/g; ! ps | grep -q '[s]leep 1000'
		den run --rm --network=none nested true 2>&1 || true; den store verify --deep >/dev/null`)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"rung chroot", "for trusted Dockerfiles only", "Storage driver:  copy", "1000\nold\n", "4755 33:44\nnew\n", "network none: not implemented"} {
		if !strings.Contains(out, word) {
			t.Errorf("den does not say %q:\n%s", word, out)
		}
	}
	tr := readTree(t, filepath.Join(d.home, "out.tar"))
	tr.is(t, "srv/file", "file 4755 33:44")
	tr.holds(t, "srv/file", "secret")
	tr.holds(t, "srv/cached", "kept\n")
	tr.holds(t, "tmp/id", "1000\n")
	tr.lacks(t, "c/x", "run/secrets", "scratch", "dev/null", "dev/full", "proc/self")
	// Where there are namespaces the same steps give the same files.
	priv := d.dir(files{"Dockerfile": chrootDockerfile, "f": "f", "s": "secret"})
	d.run("build", "--secret", "id=s,src="+priv+"/s", "-o", "type=tar,dest="+d.home+"/priv.tar", priv)
	equal(t, "trees", readTree(t, filepath.Join(d.home, "priv.tar")).below(""), tr.below(""))
}

// What docs/security.md promises for the rung, and what it says is not: a step has nothing of den's in
// its hands, no /proc to look for it, and can leave its root when it likes.
func TestStepsInAChrootAreGivenNothingAndCanLeave(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"s": "hush-of-the-file", "docker/config.json": `{"auths":{"registry.invalid":{"auth":"aHVzaC1vZi10aGUtcmVnaXN0cnk6"}}}`, "ctx/Dockerfile": `FROM @small
RUN --mount=type=secret,id=s true
RUN toolbox spy hush-of- the > /spied; toolbox spy aHVzaC1vZi 10aGUtcmVnaXN0cnk6 >> /spied; ls -A /proc /run/secrets 2>/dev/null | grep -v : | wc -w > /listed; toolbox hostile > /hostile; true
`})
	o := outer{docker, d, []string{"-e", "DEN_STORE=/work/store", "-e", "DEN_ISOLATION=chroot", "-e", "TOKEN=hush-of-the-environment", "-e", "DOCKER_CONFIG=/work/docker"}}
	if _, err := o.sh(`den build --secret id=s,src=s -o type=tar,dest=/work/out.tar ctx`); err != nil {
		t.Fatal(err)
	}
	tr := readTree(t, filepath.Join(d.home, "out.tar"))
	tr.holds(t, "spied", "looked\nlooked\n")
	tr.holds(t, "listed", "0\n")
	if tr["hostile"].Size == 0 {
		t.Error("the step cannot leave its root: docs/security.md says that it can")
	}
}
