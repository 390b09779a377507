package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// A travelling image says what it is, and where its files' owners and modes arrived.
const travelDockerfile = `FROM @small
RUN echo from-the-build > /message && chown 33:44 /message && chmod 2755 /message && rm /bin/vi
COPY f /copied
ENV WHO=traveller
USER app
WORKDIR /tmp
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /message /copied; stat -c '%a %u:%g' /message; echo $WHO; id -un; pwd; ls /bin/vi 2>/dev/null | wc -l"]
`

const travelSays = "from-the-build\ncopied\n2755 33:44\ntraveller\napp\n/tmp\n0\n"

func travelContext(d *den) string {
	return d.dir(files{"Dockerfile": travelDockerfile, "f": "copied\n"})
}

func says(t *testing.T, who, got string) {
	t.Helper()
	if got != travelSays {
		t.Errorf("%s: the image says %q, want %q", who, got, travelSays)
	}
}

func TestImagesOfDenRunInDockerd(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	ctx := travelContext(d)
	saved, built := filepath.Join(d.home, "saved.tar"), filepath.Join(d.home, "built.tar")
	d.run("build", "-t", "den/travel:saved", ctx)
	d.run("save", "-o", saved, "den/travel:saved")
	d.run("build", "-t", "den/travel:built", "-o", "type=docker,dest="+built, ctx)
	for file, name := range map[string]string{saved: "den/travel:saved", built: "den/travel:built"} {
		docker.run(t, "load", "-q", "-i", file)
		says(t, "docker load of "+filepath.Base(file), docker.run(t, "run", "--rm", "--network=none", name))
	}
	for _, compression := range []string{"gzip", "uncompressed"} {
		name := newName(t)
		d.run("build", "-o", "type=image,name="+name+",push=true,force-compression=true,compression="+compression, ctx)
		says(t, "docker pull of "+compression, docker.run(t, "run", "--rm", "--network=none", name))
	}
	if den, dock := strings.TrimSpace(d.run("inspect", "-f", "{{.Id}}", "den/travel:saved")), strings.TrimSpace(docker.run(t, "inspect", "-f", "{{.Id}}", "den/travel:saved")); den != dock {
		t.Errorf("den calls the image %s, dockerd %s", den, dock)
	}
}

func TestImagesOfDenAreCopiedBySkopeo(t *testing.T) {
	t.Parallel()
	c := newContainers(t)
	d := newDen(t)
	ctx := travelContext(d)
	name := newName(t)
	d.run("build", "--push", "-t", name, ctx)
	d.run("tag", name, "travel:1")
	archive, layout, oci := filepath.Join(d.home, "docker.tar"), filepath.Join(d.home, "layout"), filepath.Join(d.home, "oci.tar")
	d.run("save", "-o", archive, "travel:1")
	d.run("build", "-t", "travel:1", "-o", "type=oci,tar=false,dest="+layout, "-o", "type=oci,dest="+oci, ctx)
	for _, from := range []string{"docker://" + name, "docker-archive:" + archive, "oci:" + layout, "oci-archive:" + oci} {
		c.run("skopeo", "copy", "-q", "--src-tls-verify=false", from, "dir:"+filepath.Join(c.dir, "copy"))
		if out := c.run("skopeo", "inspect", "--config", "dir:"+filepath.Join(c.dir, "copy")); !strings.Contains(out, "WHO=traveller") {
			t.Errorf("%s: skopeo sees %s", from, out)
		}
	}
}

func TestImagesOfDenAreLoadedByPodman(t *testing.T) {
	t.Parallel()
	need(t, "podman")
	c := newContainers(t)
	d := newDen(t)
	ctx := travelContext(d)
	saved, archive, oci := filepath.Join(d.home, "saved.tar"), filepath.Join(d.home, "docker.tar"), filepath.Join(d.home, "oci.tar")
	d.run("build", "-t", "localhost/travel:saved", ctx)
	d.run("save", "-o", saved, "localhost/travel:saved")
	d.run("build", "-t", "localhost/travel:docker", "-o", "type=docker,dest="+archive, ctx)
	d.run("build", "-t", "localhost/travel:oci", "-o", "type=oci,dest="+oci, ctx)
	id := strings.TrimPrefix(strings.TrimSpace(d.run("inspect", "-f", "{{.Id}}", "localhost/travel:saved")), "sha256:")
	for file, name := range map[string]string{saved: "localhost/travel:saved", archive: "localhost/travel:docker", oci: "localhost/travel:oci"} {
		c.run("podman", "load", "-q", "-i", file)
		if got := strings.TrimSpace(c.run("podman", "image", "inspect", "--format", "{{.Id}} {{.Config.User}} {{.Config.WorkingDir}}", name)); got != id+" app /tmp" {
			t.Errorf("%s: podman sees %q, want the image %s of user app in /tmp", name, got, id)
		}
	}
	// And back: what podman saves is the same image to den.
	for _, format := range []string{"docker-archive", "oci-archive"} {
		file, other := filepath.Join(c.dir, format+".tar"), newDen(t)
		c.run("podman", "save", "-q", "--format", format, "-o", file, "localhost/travel:saved")
		other.run("load", "-q", "-i", file)
		says(t, "den run of podman's "+format, other.run("run", "--rm", "--pull=never", "localhost/travel:saved"))
	}
}

func TestRemovalIsToldInDockersWords(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	file := filepath.Join(d.home, "saved.tar")
	d.run("build", "-t", "den/removed:1", "-t", "den/removed:2", d.dir(files{
		"Dockerfile": "FROM scratch\nCOPY a /\nCOPY b /\nLABEL x=y\n", "a": t.Name(), "b": "removed",
	}))
	d.run("save", "-o", file, "den/removed:1", "den/removed:2")
	docker.run(t, "load", "-q", "-i", file)
	for _, name := range []string{"den/removed:1", "den/removed:2"} {
		want, got := docker.run(t, "rmi", name), d.run("rmi", name)
		if got != want {
			t.Errorf("rmi %s: den says\n%sdocker\n%s", name, got, want)
		}
	}
}

func TestImagesOfDenRunInPodman(t *testing.T) {
	t.Parallel()
	c := newContainers(t)
	d := newDen(t)
	ctx := travelContext(d)
	archive, oci := filepath.Join(d.home, "docker.tar"), filepath.Join(d.home, "oci.tar")
	d.run("build", "-t", "localhost/travel:docker", "-o", "type=docker,dest="+archive, ctx)
	d.run("build", "-t", "localhost/travel:oci", "-o", "type=oci,dest="+oci, ctx)
	if _, err := c.try("podman", "run", "--rm", "--network=none", smallImage(t), "true"); err != nil {
		t.Skipf("needs a podman that runs: %v", err)
	}
	for file, name := range map[string]string{archive: "localhost/travel:docker", oci: "localhost/travel:oci"} {
		c.run("podman", "load", "-q", "-i", file)
		says(t, name, c.run("podman", "run", "--rm", "--network=none", name))
	}
}

func TestImagesOfDockerdRunInDen(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	everyRung(t, func(t *testing.T, d *den) {
		ctx := travelContext(d)
		name := newName(t)
		docker.run(t, "build", "--network=host", "-q", "-t", name, ctx)
		docker.run(t, "push", name)
		says(t, "den run of what dockerd pushed", d.run("run", "--rm", name))
		file := filepath.Join(d.home, "docker.tar")
		docker.run(t, "tag", name, "dockers/travel:1")
		docker.run(t, "save", "-o", file, "dockers/travel:1")
		d.own(file)
		d.run("load", "-i", file)
		says(t, "den run of what dockerd saved", d.run("run", "--rm", "--pull=never", "dockers/travel:1"))
		// A build on top of it, back in dockerd.
		next := newName(t)
		d.run("build", "--push", "-t", next, d.dir(files{"Dockerfile": "FROM dockers/travel:1\nRUN true\nCOPY f /copied\n", "f": "copied\n"}))
		says(t, "dockerd's run of den's build upon it", docker.run(t, "run", "--rm", "--network=none", next))
	})
}

func TestImagesOfBuildahAndSkopeoRunInDen(t *testing.T) {
	t.Parallel()
	need(t, "buildah", "skopeo")
	c := newContainers(t)
	d := newDen(t)
	ctx := travelContext(d)
	in := func(name string) string { return filepath.Join(c.dir, name) }
	name := newName(t)
	c.run("buildah", "bud", "-q", "--isolation=chroot", "--network=host", "-t", "buildahs/travel:1", ctx)
	c.run("buildah", "push", "-q", "buildahs/travel:1", "docker://"+name)
	c.run("buildah", "push", "-q", "buildahs/travel:1", "oci-archive:"+in("oci.tar")+":buildahs/travel:oci")
	c.run("buildah", "push", "-q", "buildahs/travel:1", "docker-archive:"+in("docker.tar")+":buildahs/travel:docker")
	c.run("skopeo", "copy", "-q", "--src-tls-verify=false", "--format=oci", "--dest-compress-format=zstd", "docker://"+name, "oci:"+in("layout")+":zstd")
	c.run("skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+name, "docker-archive:"+in("skopeo.tar")+":skopeos/travel:1")
	says(t, "what buildah pushed", d.run("run", "--rm", name))
	for _, file := range []string{"oci.tar", "docker.tar", "skopeo.tar"} {
		d.run("load", "-q", "-i", in(file))
	}
	for _, loaded := range []string{"buildahs/travel:oci", "buildahs/travel:docker", "skopeos/travel:1"} {
		if !strings.Contains(d.run("images", "--format", "{{.Repository}}:{{.Tag}}"), loaded) {
			t.Errorf("%s is not in\n%s", loaded, d.run("images"))
			continue
		}
		says(t, loaded, d.run("run", "--rm", "--pull=never", loaded))
	}
	digest := readIndex(t, in("layout")).Manifests[0].Digest
	got := d.tree("--build-context", "base=oci-layout://"+in("layout")+"@"+digest, d.dir(files{"Dockerfile": "FROM base\n"}))
	got.is(t, "message", "file 2755 33:44")
	got.lacks(t, "bin/vi")
}

func TestSavedImagesLoadAgain(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		file := filepath.Join(d.home, "saved.tar")
		d.run("build", "-t", "travel:1", "-t", "travel:2", travelContext(d))
		id := d.run("inspect", "-f", "{{.Id}}", "travel:1")
		d.run("save", "-o", file, "travel:1", "travel:2")
		other := newDen(t)
		other.run("load", "-q", "-i", file)
		if got := other.run("inspect", "-f", "{{.Id}}", "travel:2"); got != id {
			t.Errorf("the image was %s and is %s", id, got)
		}
		says(t, "the loaded image", other.run("run", "--rm", "travel:2"))
	})
}
