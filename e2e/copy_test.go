package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// copyContext has what COPY can trip over.
func copyContext(d *den, dockerfile string) string {
	d.t.Helper()
	ctx := d.dir(files{
		"Dockerfile": dockerfile, "a.txt": "a", "b.txt": "bb", "c.md": "ccc", "sp ace": "s", "[bracket]": "b",
		"tree/x": "x", "tree/sub/y": "y", "tree/sub/z.md": "z", "tree/empty/": "", "exec": "#!/bin/sh\n",
	})
	in := func(name string) string { return filepath.Join(ctx, name) }
	d.own(ctx) // before the modes: chown clears setuid
	for _, err := range []error{
		os.Symlink("a.txt", in("tree/link")), os.Symlink("/etc/passwd", in("tree/absolute")),
		os.Chmod(in("exec"), 0o755), os.Chmod(in("c.md"), 0o600), os.Chmod(in("tree/sub"), 0o750|os.ModeSetgid),
		os.Chtimes(in("a.txt"), baseTime, baseTime.Add(time.Hour)), os.Chmod(in("tree/x"), 0o755|os.ModeSetuid),
	} {
		if err != nil {
			d.t.Fatal(err)
		}
	}
	return ctx
}

func TestCopyKeepsModesLinksAndTimesAndZeroesOwners(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		ctx := copyContext(d, `FROM @small
COPY a.txt b.txt /many/
COPY tree /tree
COPY tree/ /tree/again
COPY *.txt /wild/
COPY exec c.md /modes/
COPY ["sp ace", "/spaces/"]
COPY "[[]bracket]" /brackets/
COPY a.txt /renamed
COPY . /everything/
`)
		got := d.tree(ctx)
		for name, want := range map[string]string{
			"many/a.txt": "file 0644 0:0", "many": "dir 0755 0:0", "tree/sub": "dir 2750 0:0", "tree/empty": "dir 0755 0:0",
			"tree/link": "symlink 0777 0:0", "tree/again/x": "file 4755 0:0", "wild/b.txt": "file 0644 0:0", "modes/exec": "file 0755 0:0",
			"modes/c.md": "file 0600 0:0", "spaces/sp ace": "file 0644 0:0", "brackets/[bracket]": "file 0644 0:0", "everything/Dockerfile": "file 0644 0:0",
		} {
			got.is(t, name, want)
		}
		got.holds(t, "renamed", "a")
		got.lacks(t, "wild/c.md", "tree/a.txt")
		if l := got["tree/absolute"].Link; l != "/etc/passwd" {
			t.Errorf("the link leads to %q", l)
		}
		if at := got["many/a.txt"].ModTime; !at.Equal(baseTime.Add(time.Hour)) {
			t.Errorf("the file's time is %v", at)
		}
	})
}

func TestCopyFlags(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := copyContext(d, `# syntax=docker/dockerfile:1-labs
FROM @small AS stage
RUN mkdir -p /s/deep && echo s > /s/deep/file && ln -s deep /s/link && chown -R 33:44 /s && toolbox setxattr /s/deep/file user.note kept
FROM @small
RUN mkdir /real && ln -s real /alias
COPY --chown=app:extra --chmod=0640 a.txt /owned
COPY --chown=33 tree /numbers
COPY --chmod=u=rwX,go=rX tree /symbolic
COPY --exclude=*.md --exclude=tree/sub/y . /excluded/
COPY --parents tree/sub/*.md ./tree/./sub/y /parents/
COPY --parents **/y /deep/
COPY --from=stage /s /copied
COPY --from=stage --chown=0:0 /s/deep/file /rooted
COPY --link a.txt /linked/dir/a.txt
COPY --link --from=stage --chown=7:8 /s/deep /linked/stage
COPY a.txt /alias/followed
COPY --from=@small /bin/busybox /from-image
`)
	got := d.tree(ctx)
	for name, want := range map[string]string{
		"owned": "file 0640 1000:44", "numbers/x": "file 4755 33:33", "symbolic/sub/y": "file 0644 0:0", "symbolic/sub": "dir 0755 0:0",
		"copied/deep/file": "file 0644 33:44", "rooted": "file 0644 0:0", "linked/dir/a.txt": "file 0644 0:0", "linked/stage/file": "file 0644 7:8",
		"parents/tree/sub/z.md": "file 0644 0:0", "parents/sub/y": "file 0644 0:0", "deep/tree/sub/y": "file 0644 0:0", "from-image": "file 0755 0:0",
		"real/followed": "file 0644 0:0",
	} {
		got.is(t, name, want)
	}
	got.lacks(t, "excluded/c.md", "excluded/tree/sub/y", "parents/tree/sub/y")
	got.holds(t, "excluded/tree/x", "x")
	if x := got["copied/deep/file"].Xattrs["user.note"]; x != "kept" {
		t.Errorf("attributes are %v", got["copied/deep/file"].Xattrs)
	}
	if l := got["copied/link"].Link; l != "deep" {
		t.Errorf("the link leads to %q", l)
	}
}

func TestLinkedCopiesOutliveChangesOfTheirBase(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN echo 1 > /base\nCOPY --link file /file\n", "file": "same"})
	first := d.image(ctx)
	d.fill(ctx, files{"Dockerfile": "FROM @small\nRUN echo 2 > /base\nCOPY --link file /file\n"})
	// LINK is only the concatenation of layers.
	equal(t, "executed", []string{"[2/3] RUN echo 2 > /base", "[3/3] LINK COPY --link file /file"}, d.steps(ctx))
	second := d.image(ctx)
	n := len(first.manifest.Layers) - 1
	if first.manifest.Layers[n].Digest != second.manifest.Layers[n].Digest {
		t.Error("the linked layer is another")
	}
	second.tree.holds(t, "base", "2\n")
	second.tree.holds(t, "file", "same")
}

func TestMissingAndForeignSourcesAreNamed(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	for line, word := range map[string]string{
		"COPY nowhere /":                     "/nowhere",
		"COPY ../../etc/passwd /":            "/etc/passwd",
		"COPY --from=stgae a /":              "stgae",
		"ADD --checksum=sha256:aa a.txt /":   "checksum",
		"RUN --mount=type=cahce,target=/x x": "cahce",
		"CPOY a.txt /":                       "CPOY",
	} {
		d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM @small\n" + line + "\n", "a.txt": ""})}, word)
	}
}

// The texts are BuildKit's: people search for them.
func TestMistakesAreSaidAsBuildKitSaysThem(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	ctx := d.dir(files{"a": "a", "d/x": "x"})
	for name, to := range map[string]string{"dangling": "nowhere", "absolute": "/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(ctx, name)); err != nil {
			t.Fatal(err)
		}
	}
	for line, text := range map[string]string{
		"COPY dangling /x":      `"/dangling": not found`,
		"COPY absolute /x":      `"/absolute": not found`,
		"COPY a /etc/passwd/x":  "mkdir /etc/passwd: not a directory",
		"COPY a d /x":           "cannot copy to non-directory: /x",
		"COPY d /etc/passwd":    "cannot copy to non-directory: /etc/passwd",
		"COPY --chmod=xyz a /x": "invalid syntax",
		"COPY a":                "COPY requires at least two arguments",
		"COPY --bogus a /":      "unknown flag: --bogus",
		"RUN --mount=type=bind,source=nosuch,target=/x true": `"/nosuch": not found`,
		"RUN nosuchprogram":                                          `process "/bin/sh -c nosuchprogram" did not complete successfully: exit code: 127`,
		"USER nosuchuser\nRUN true":                                  "unable to find user nosuchuser: no matching entries in passwd file",
		"WORKDIR /etc/passwd\nRUN true":                              "mkdir /etc/passwd: not a directory",
		"RUN --mount=type=secret,id=zz,required cat /run/secrets/zz": "--secret id=zz,src=FILE",
		"RUN --mount=type=cache,target=/x,sharing=foo true":          `unsupported sharing value "foo"`,
		"RUN --security=insecure true":                               "security.insecure is not allowed",
		"RUN --network=host true":                                    "network.host is not allowed",
		"EXPOSE 99999":                                               "invalid containerPort: 99999",
		"HEALTHCHECK --interval=1us CMD true":                        "cannot be less than 1ms",
		"STOPSIGNAL FOO":                                             "invalid signal: FOO",
		"ONBUILD ONBUILD RUN x":                                      "Chaining ONBUILD",
		"ONBUILD FROM x":                                             "FROM isn't allowed as an ONBUILD trigger",
		"VOLUME []":                                                  "VOLUME requires at least one argument",
		"LABEL a":                                                    "LABEL must have two arguments",
		"SHELL foo":                                                  "SHELL requires the arguments to be in JSON form",
	} {
		d.fill(ctx, files{"Dockerfile": "FROM @small\n" + line + "\n"})
		d.fails([]string{"build", ctx}, text)
	}
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestIgnoreFilesKeepFilesOutOfTheContext(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	f := files{
		"Dockerfile": "FROM scratch\nCOPY . /\n", ".dockerignore": "# comment\n*.log\n!keep.log\n**/secret\nout/\n/rooted\nDockerfile\n",
		"a.log": "", "keep.log": "", "deep/secret": "", "deep/b.log": "", "out/x": "", "rooted": "", "deep/rooted": "", "plain": "",
	}
	got := d.tree(d.dir(f))
	equal(t, "files", []string{".dockerignore", "deep", "deep/b.log", "deep/rooted", "keep.log", "plain"}, got.names())
	f["Special.Dockerfile"], f["Special.Dockerfile.dockerignore"] = "FROM scratch\nCOPY p* /\n", "*\n!p*\n"
	dir := d.dir(f)
	got = d.tree("-f", filepath.Join(dir, "Special.Dockerfile"), dir)
	equal(t, "files", []string{"plain"}, got.names())
}

func TestContextFilesOfEveryKindAreCopied(t *testing.T) {
	t.Parallel()
	needRoot(t) // device nodes and owners
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nCOPY . /\n", ".dockerignore": "Dockerfile\n.dockerignore\n", "first": "same", "owned": "o"})
	in := func(name string) string { return filepath.Join(ctx, name) }
	for _, err := range []error{os.Link(in("first"), in("second")), os.Chown(in("owned"), 12, 34), mkfifo(in("pipe")), setxattr(in("first"), "user.note", "kept")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := d.tree(ctx)
	got.is(t, "owned", "file 0644 0:0")
	got.holds(t, "second", "same")
	if x := got["first"].Xattrs["user.note"]; x != "kept" {
		t.Errorf("attributes are %v", got["first"].Xattrs)
	}
}
