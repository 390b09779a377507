package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The Dockerfiles of testdata/buildkit have been built by BuildKit once; beside
// each lies what came out: configuration, history, and what each layer above
// the base changed. den has to make the same, as root and as a plain user.
//
// DEN_E2E_BUILDKIT=unix://SOCKET writes the files anew from a buildkitd, which
// has to allow insecure entitlements and plain HTTP to loopback.
//
// A Dockerfile's last lines "#flags ..." are arguments of both builds; @http is
// a server of files, @git a repository.
func TestImagesAreAsBuildKitMakesThem(t *testing.T) {
	t.Parallel()
	list, err := filepath.Glob("testdata/buildkit/*.Dockerfile")
	if err != nil || len(list) == 0 {
		t.Fatalf("no Dockerfiles: %v", err)
	}
	for _, file := range list {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".Dockerfile"), func(t *testing.T) {
			t.Parallel()
			want := strings.TrimSuffix(file, ".Dockerfile") + ".want"
			if daemon := os.Getenv("DEN_E2E_BUILDKIT"); daemon != "" {
				g := newGolden(t, newDen(t), file)
				if err := os.WriteFile(want, []byte(g.buildkit(daemon)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			test := func(t *testing.T, d *den) {
				b, err := os.ReadFile(want)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "image", strings.Split(string(b), "\n"), strings.Split(newGolden(t, d, file).den(), "\n"))
			}
			if strings.HasSuffix(want, "-root.want") { // what a user namespace cannot, such as mknod
				needRoot(t)
				test(t, newDen(t))
				return
			}
			if strings.HasSuffix(want, "runenv.want") { // lists /dev, in which gVisor has more
				strongRungs(t, test)
				return
			}
			everyRung(t, test)
		})
	}
}

// A golden is one Dockerfile with its context.
type golden struct {
	t     *testing.T
	d     *den
	ctx   string
	flags []string
	names *strings.Replacer // of what differs from run to run
}

func newGolden(t *testing.T, d *den, file string) *golden {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	g := &golden{t: t, d: d, names: strings.NewReplacer()}
	if strings.Contains(text, "@http") || strings.Contains(text, "@git") {
		http := fileServer(t, map[string][]byte{"blob.bin": []byte("downloaded"), "archive.tar": goldenArchive()})
		git := "http://no.repository"
		if strings.Contains(text, "@git") {
			git, _ = gitServer(t, d)
		}
		text = strings.NewReplacer("@http", http, "@git", git).Replace(text)
		g.names = strings.NewReplacer(http, "@http", git, "@git")
	}
	for line := range strings.Lines(text) {
		if f, ok := strings.CutPrefix(line, "#flags "); ok {
			g.flags = append(g.flags, strings.Fields(f)...)
		}
	}
	g.ctx = goldenContext(d, text)
	return g
}

// goldenContext has a file of every kind that a plain user may make.
func goldenContext(d *den, dockerfile string) string {
	d.t.Helper()
	ctx := d.dir(files{
		"Dockerfile": dockerfile, ".dockerignore": "Dockerfile\n.dockerignore\nignored\n**/*.tmp\n", "ignored": "i", "tree/x.tmp": "t",
		"a.txt": "a", "b.txt": "bb", "c.md": "ccc", "sp ace": "s", "[bracket]": "b", "exec": "#!/bin/sh\n", "secret": "s3cr3t",
		"tree/x": "x", "tree/sub/y": "y", "tree/sub/z.md": "z", "tree/sub/deep/w.md": "w", "tree/empty/": "", "tree2/x": "other", "tree2/sub/only2": "o", "named/a": "named",
		"archive.tar": string(goldenArchive()), "archive.tgz": string(gzipped(goldenArchive())), "notarchive.tar": "no tar",
	})
	in := func(name string) string { return filepath.Join(ctx, name) }
	for _, err := range []error{
		os.Symlink("a.txt", in("link")), os.Symlink("sub", in("tree/dirlink")), os.Symlink("/etc/passwd", in("tree/absolute")), os.Symlink("nowhere", in("tree/dangling")),
		os.Link(in("tree/x"), in("tree/hard")), mkfifo(in("tree/fifo")),
		os.Chmod(in("exec"), 0o755), os.Chmod(in("c.md"), 0o600), os.Chmod(in("tree/sub"), 0o2750|os.ModeSetgid), os.Chmod(in("tree/x"), 0o755|os.ModeSetuid), os.Chmod(in("tree/empty"), 0o777|os.ModeSticky),
	} {
		if err != nil {
			d.t.Fatal(err)
		}
	}
	err := filepath.WalkDir(ctx, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSymlink == 0 {
			err = os.Chtimes(p, baseTime, baseTime.Add(time.Hour))
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return ctx
}

// goldenArchive is a tar with an entry of every kind.
func goldenArchive() []byte {
	var b bytes.Buffer
	w := tarWriter{tar.NewWriter(&b)}
	w.add(tar.Header{Name: "in/", Typeflag: tar.TypeDir, Mode: 0o2775, Uid: 5, Gid: 6}, nil)
	w.add(tar.Header{Name: "in/side", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 33, Gid: 44}, []byte("inside"))
	w.add(tar.Header{Name: "in/hard", Typeflag: tar.TypeLink, Linkname: "in/side", Mode: 0o4711, Uid: 33, Gid: 44}, nil)
	w.add(tar.Header{Name: "in/soft", Typeflag: tar.TypeSymlink, Linkname: "side", Mode: 0o777, Uid: 1, Gid: 2}, nil)
	w.add(tar.Header{Name: "in/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, nil)
	w.add(tar.Header{Name: "in/attr", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "packed"}}, []byte("attr"))
	w.add(tar.Header{Name: "implied/dir/file", Typeflag: tar.TypeReg, Mode: 0o600}, []byte("implied"))
	_ = w.Close() // a buffer takes everything
	return b.Bytes()
}

// den builds with den.
func (g *golden) den() string {
	g.t.Helper()
	dir := filepath.Join(g.d.home, "layout")
	args := []string{"build", "-o", "type=oci,tar=false,dest=" + dir}
	for _, f := range g.flags {
		args = append(args, strings.ReplaceAll(f, "@ctx", g.ctx))
	}
	g.d.run(append(args, g.ctx)...)
	return g.describe(dir)
}

// buildkit builds with a buildkitd. Only the flags that the table uses are translated.
func (g *golden) buildkit(daemon string) string {
	g.t.Helper()
	dir := filepath.Join(g.d.home, "layout")
	args := []string{"--addr", daemon, "build", "--frontend=dockerfile.v0", "--local", "context=" + g.ctx, "--local", "dockerfile=" + g.ctx, "--opt", "cmdline=docker/dockerfile", "--output", "type=oci,tar=false,dest=" + dir}
	for _, f := range g.flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		value = strings.ReplaceAll(value, "@ctx", g.ctx)
		k, v, _ := strings.Cut(value, "=")
		switch name {
		case "build-arg", "label":
			args = append(args, "--opt", name+":"+value)
		case "secret", "ssh", "allow":
			args = append(args, "--"+name, value)
		case "target", "platform", "shm-size":
			args = append(args, "--opt", name+"="+value)
		case "no-cache":
			args = append(args, "--no-cache")
		case "build-context":
			args = append(args, "--opt", "context:"+k+"=local:"+k, "--local", k+"="+v)
		default:
			g.t.Fatalf("no translation of %s", f)
		}
	}
	if out, err := exec.Command("buildctl", args...).CombinedOutput(); err != nil {
		g.t.Fatalf("buildctl: %v\n%s", err, out)
	}
	return g.describe(dir)
}

// describe writes an image down, without what differs from run to run.
func (g *golden) describe(dir string) string {
	t := g.t
	t.Helper()
	blob := func(digest string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", strings.Replace(digest, ":", "/", 1)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var m manifest
	var c map[string]any
	if err := json.Unmarshal(blob(readIndex(t, dir).Manifests[0].Digest), &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(m.Config.Digest), &c); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	delete(c, "rootfs")
	delete(c, "architecture")
	if created, _ := c["created"].(string); created > "2026-02" {
		c["created"] = "now"
	}
	history, _ := c["history"].([]any)
	delete(c, "history")
	pretty := func(v any) {
		b, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n", b)
	}
	pretty(c)
	for _, h := range history {
		e, _ := h.(map[string]any)
		if created, _ := e["created"].(string); created > "2026-02" {
			e["created"] = "now"
		}
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "history %s\n", b)
	}
	tr := tree{}
	for i, l := range m.Layers {
		before := maps.Clone(tr)
		tr.apply(t, bytes.NewReader(decompress(t, blob(l.Digest))))
		if i == 0 && len(history) > 0 && strings.Contains(fmt.Sprint(history[0]), "the test") {
			continue // the base's
		}
		fmt.Fprintf(&out, "layer %d\n", i)
		for _, line := range changes(before, tr) {
			fmt.Fprintf(&out, "  %s\n", line)
		}
	}
	return g.names.Replace(strings.ReplaceAll(out.String(), needRegistry(t), "@registry"))
}

// changes says what a layer did to a tree, sorted by name. Attributes other
// than capabilities are left out, for BuildKit's layers carry none, and so are
// the times of directories, which depend on what it had to make for its mounts.
func changes(before, after tree) []string {
	var lines []string
	plain := func(e entry) entry {
		e.Xattrs = map[string]string{"security.capability": e.Xattrs["security.capability"]}
		if e.Type == "dir" {
			e.ModTime = time.Time{}
		}
		return e
	}
	for _, name := range after.names() {
		e := plain(after[name])
		if old, ok := before[name]; ok && diff(plain(old), e) == "" {
			continue
		}
		line := name + ": " + e.Type + " " + e.Mode + " " + e.Owner
		for _, f := range []string{e.Link, e.Device, e.Sum, e.Same} {
			if f != "" {
				line += " " + f
			}
		}
		if c := e.Xattrs["security.capability"]; c != "" {
			line += fmt.Sprintf(" %x", c)
		}
		switch {
		case e.Type == "dir":
		case e.ModTime.Before(baseTime.AddDate(0, 1, 0)):
			line += " " + e.ModTime.Format(time.RFC3339Nano)
		default:
			line += " now"
		}
		lines = append(lines, line)
	}
	for _, name := range before.names() {
		if _, ok := after[name]; !ok {
			lines = append(lines, name+": gone")
		}
	}
	return lines
}
