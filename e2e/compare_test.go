package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What classic builders understand too, with everything a layer can hold.
const compareDockerfile = `FROM @small
ARG VERSION=1
ENV APP=/srv/app VERSION=${VERSION}
LABEL org.test.version=$VERSION
RUN mkdir -p /srv/app/deep && echo "$VERSION" > /srv/app/version \
 && echo content > /srv/app/file && ln /srv/app/file /srv/app/deep/hard && ln -s ../file /srv/app/deep/soft && ln -s /nowhere /srv/app/dangling \
 && mkfifo /srv/app/fifo && mknod /srv/app/zero c 1 5 && dd if=/dev/zero of=/srv/app/sparse bs=1 count=1 seek=1M 2>/dev/null \
 && chown 33:44 /srv/app/version && chown -h 33:44 /srv/app/dangling && chmod 4750 /srv/app/version && chmod 1777 /srv/app/deep && touch -d '2020-02-02 02:02:02' /srv/app/deep/old \
 && toolbox setcap /srv/app/file && touch '/srv/app/sp ace' /srv/app/ünïcode
RUN rm /bin/vi && rm -rf /home/app && mkdir /home/app && touch /home/app/new && mv /var /moved && rmdir /usr/bin && touch /usr/bin && chmod 700 /root && rm /srv/app/deep/soft
WORKDIR /srv/app/made
COPY tree /srv/copied
COPY tree/exec renamed
COPY --chown=app:extra tree/sub /srv/owned
ADD archive.tar.gz /srv/unpacked
ADD tree/x /srv/added
USER app
WORKDIR /tmp
RUN id -u > /tmp/user
USER 33:44
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=7s CMD true
SHELL ["/bin/sh", "-c"]
ONBUILD RUN true
ENTRYPOINT ["/bin/busybox", "echo"]
CMD ["a", "b"]
`

func compareContext(d *den) string {
	d.t.Helper()
	ctx := copyContext(d, compareDockerfile)
	archive := gzipped(tarBytes(d.t, files{"in/": "", "in/side": "inside"}))
	d.fill(ctx, files{"tree/exec": "#!/bin/sh\n", "archive.tar.gz": string(archive)})
	for name, mode := range map[string]os.FileMode{"tree/exec": 0o755, "tree/x": 0o640, "tree/sub": 0o750} { // the peers lose setuid and setgid
		if err := os.Chmod(filepath.Join(ctx, name), mode); err != nil {
			d.t.Fatal(err)
		}
	}
	for _, name := range []string{"tree/x", "tree/exec", "tree/sub/y"} {
		if err := os.Chtimes(filepath.Join(ctx, name), baseTime, baseTime.Add(time.Hour)); err != nil {
			d.t.Fatal(err)
		}
	}
	return ctx
}

// sameImage compares what den made with what a peer made.
func sameImage(t *testing.T, want, got image, forget func(*entry)) {
	t.Helper()
	clock := func(tr tree) tree {
		out := tree{}
		for name, e := range tr {
			if e.ModTime.After(baseTime.AddDate(0, 1, 0)) { // made by the build: any time
				e.ModTime = time.Time{}
			}
			forget(&e)
			out[name] = e
		}
		return out
	}
	equal(t, "files", clock(want.tree), clock(got.tree))
	w, g := want.config.Config, got.config.Config
	equal(t, "configuration", w, g)
	equal(t, "platform", want.config.OS+"/"+want.config.Architecture, got.config.OS+"/"+got.config.Architecture)
}

func TestImagesAreAsDockerdMakesThem(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	ctx := compareContext(d)
	sameImage(t, docker.image(t, ctx), d.image(ctx), func(e *entry) {
		if e.Type == "dir" {
			e.ModTime = time.Time{} // the classic builder keeps other directories' times
		}
		for k := range e.Xattrs {
			if k != "security.capability" { // dockerd's layers carry no other
				delete(e.Xattrs, k)
			}
		}
	})
}

func TestImagesAreAsBuildahMakesThem(t *testing.T) {
	t.Parallel()
	need(t, "buildah")
	c := newContainers(t)
	d := newDen(t)
	ctx := compareContext(d)
	want := c.image(ctx)
	delete(want.config.Config.Labels, "io.buildah.version")
	for _, stub := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf"} { // targets of its mounts
		delete(want.tree, stub)
	}
	sameImage(t, want, d.image(ctx), func(e *entry) {
		if e.Type == "dir" {
			e.ModTime = time.Time{}
		}
	})
}

func TestPlainUsersImagesAreThoseOfRoot(t *testing.T) {
	t.Parallel()
	root, plain := newDen(t), newPlainDen(t)
	ctx := copyContext(root, `FROM @small
RUN mkdir /srv && echo x > /srv/suid && chown 33:33 /srv/suid && chmod 6755 /srv/suid && touch /srv/far && chown 60000:60001 /srv/far \
 && toolbox setxattr /srv/far user.note kept && echo c > /srv/cap && toolbox setcap /srv/cap && ln -s far /srv/link && chown -h 7:8 /srv/link \
 && mkdir -m 1777 /srv/sticky && rm -rf /home/app && mkdir /home/app && touch /home/app/opaque && rm /bin/vi
USER app
RUN touch /tmp/mine && mkdir -m 0700 /tmp/closed && touch /tmp/closed/inside
USER root
COPY --chown=33:44 tree /copied
COPY --from=@small --chown=5 /bin /copied/bin
`)
	plainCtx := copyContext(plain, "")
	b, err := os.ReadFile(filepath.Join(ctx, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	plain.fill(plainCtx, files{"Dockerfile": string(b)})
	if err := os.Chmod(filepath.Join(plainCtx, "tree/x"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	want, got := root.image(ctx), plain.image(plainCtx)
	got.tree.is(t, "srv/suid", "file 6755 33:33")
	got.tree.is(t, "srv/far", "file 0644 60000:60001")
	got.tree.is(t, "srv/link", "symlink 0777 7:8")
	got.tree.is(t, "tmp/closed/inside", "file 0644 1000:1000")
	if c := got.tree["srv/cap"].Xattrs["security.capability"]; len(c) != 20 {
		t.Errorf("capabilities are %q, want the 20 bytes of revision 2", c)
	}
	sameImage(t, want, got, func(*entry) {})
	if out := plain.run("run", "--rm", plain.tagged(plainCtx), "stat", "-c", "%a %u:%g", "/srv/suid"); out != "6755 33:33\n" {
		t.Errorf("a container sees %q", out)
	}
}

func TestReproducibleBuildsHaveOneDigestEverywhere(t *testing.T) {
	t.Parallel()
	dockerfile := `FROM @small
RUN mkdir -p /r/dir && touch -d '2030-01-01 00:00:00' /r/future && touch -d '2001-01-01 00:00:00' /r/past && ln -s past /r/soft && ln /r/past /r/hard && toolbox setxattr /r/past user.note x && rm /bin/vi && chown 33:33 /r/dir
COPY tree /copied
ADD archive.tar /unpacked
COPY --link a.txt /linked
WORKDIR /made
RUN echo last > last
`
	make := func(d *den, epoch string) image {
		t.Helper()
		ctx := copyContext(d, dockerfile)
		d.fill(ctx, files{"archive.tar": string(tarBytes(t, files{"in": "x"}))})
		if err := os.Chmod(filepath.Join(ctx, "tree/x"), 0o755|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if err := os.Chtimes(filepath.Join(ctx, "b.txt"), now, now); err != nil {
			t.Fatal(err)
		}
		name := newName(t)
		d.with("SOURCE_DATE_EPOCH="+epoch).run("build", "-o", "type=image,name="+name+",push=true,rewrite-timestamp=true", ctx)
		return fetchImage(t, name)
	}
	const epoch = "1700000000"
	first := make(newDen(t), epoch)
	d := newDen(t)
	second := make(d, epoch)
	if first.digest != second.digest {
		t.Errorf("two stores made %s and %s", first.digest, second.digest)
		equal(t, "configuration", first.config, second.config)
		equal(t, "files", first.tree, second.tree)
	}
	at := time.Unix(1700000000, 0).UTC()
	for name, e := range first.tree {
		if e.ModTime.After(at) && e.ModTime.After(baseTime) {
			t.Errorf("%s is of %v", name, e.ModTime)
		}
	}
	if !first.tree["r/past"].ModTime.Equal(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("an earlier time became %v", first.tree["r/past"].ModTime)
	}
	if first.config.Created != at.Format(time.RFC3339) {
		t.Errorf("the image is of %s", first.config.Created)
	}
	if other := make(d, "1600000000"); other.digest == first.digest {
		t.Error("another epoch gave the same digest")
	}
	t.Run("plain user", func(t *testing.T) {
		third := make(newPlainDen(t), epoch)
		if first.digest != third.digest {
			t.Errorf("root made %s, the plain user %s", first.digest, third.digest)
			equal(t, "configuration", first.config, third.config)
			equal(t, "files", first.tree, third.tree)
		}
	})
}
