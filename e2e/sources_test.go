package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func mkfifo(path string) error                { return syscall.Mkfifo(path, 0o644) }
func setxattr(path, name, value string) error { return syscall.Setxattr(path, name, []byte(value), 0) }

// fileServer serves these files over http on loopback.
func fileServer(t *testing.T, f map[string][]byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := f[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Last-Modified", baseTime.Format(http.TimeFormat))
		w.Header().Set("ETag", fmt.Sprintf("%q", digestOf(b)))
		if r.Header.Get("If-None-Match") == w.Header().Get("ETag") {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(b)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// tarBytes is a tar of these files; a name that ends in "/" is a directory.
func tarBytes(t testing.TB, f files) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tarWriter{tar.NewWriter(&b)}
	for name, text := range f {
		if strings.HasSuffix(name, "/") {
			w.add(tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
			continue
		}
		w.file(name, text)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAddUnpacksArchivesAndChecksDownloads(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	archive := tarBytes(t, files{"in/side": "inside"})
	blob := []byte("downloaded")
	url := fileServer(t, map[string][]byte{"blob.bin": blob, "archive.tar": archive})
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(blob))
	ctx := d.dir(files{"local.tar": string(archive), "plain": "plain", "Dockerfile": `FROM scratch
ADD local.tar /unpacked/
ADD --unpack=false local.tar /kept.tar
ADD plain /plain
ADD --checksum=` + sum + ` --chmod=0755 --chown=33:33 ` + url + `/blob.bin /checked
ADD ` + url + `/blob.bin /named/
ADD ` + url + `/archive.tar /download.tar
ADD --unpack=true ` + url + `/archive.tar /remote/
`})
	got := d.tree(ctx)
	got.holds(t, "unpacked/in/side", "inside")
	got.holds(t, "kept.tar", string(archive))
	got.holds(t, "checked", "downloaded")
	got.is(t, "checked", "file 0755 33:33")
	got.is(t, "named/blob.bin", "file 0600 0:0")
	got.holds(t, "download.tar", string(archive))
	got.holds(t, "remote/in/side", "inside")
	if at := got["named/blob.bin"].ModTime; !at.Equal(baseTime) {
		t.Errorf("the download's time is %v, want Last-Modified's", at)
	}
	if got := d.steps(ctx); len(got) != 0 {
		t.Errorf("the second build executed %q", got)
	}
	wrong := "sha256:" + strings.Repeat("0", 64)
	d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM scratch\nADD --checksum=" + wrong + " " + url + "/blob.bin /x\n"})}, wrong, sum)
	d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM scratch\nADD " + url + "/missing /x\n"})}, "404")
}

func TestAddUnpacksEveryCompression(t *testing.T) {
	t.Parallel()
	need(t, "gzip", "bzip2", "xz", "zstd")
	d := newDen(t)
	archive := tarBytes(t, files{"dir/": "", "dir/file": "packed"})
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nADD a.tar /tar/\nADD a.tar.gz /gzip/\nADD a.tar.bz2 /bzip2/\nADD a.tar.xz /xz/\n", "a.tar": string(archive)})
	for tool, ext := range map[string]string{"gzip": "gz", "bzip2": "bz2", "xz": "xz"} {
		cmd := exec.Command(tool, "-c")
		cmd.Stdin = bytes.NewReader(archive)
		b, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		d.fill(ctx, files{"a.tar." + ext: string(b)})
	}
	got := d.tree(ctx)
	for _, dir := range []string{"tar", "gzip", "bzip2", "xz"} {
		got.holds(t, dir+"/dir/file", "packed")
	}
}

// A gitRoot is a directory of repositories, and git's own http-backend for it.
type gitRoot struct {
	t            *testing.T
	dir, backend string
}

func newGitRoot(t *testing.T) gitRoot {
	t.Helper()
	need(t, "git")
	out, err := exec.Command("git", "--exec-path").Output()
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, serr := os.Stat(backend); err != nil || serr != nil {
		t.Skip("needs git-http-backend")
	}
	return gitRoot{t, t.TempDir(), backend}
}

// git runs in a repository, which exists.
func (r gitRoot) git(repo string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = filepath.Join(r.dir, repo)
	cmd.Env = append(os.Environ(), "HOME="+r.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a.test", "GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@a.test", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
	b, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, b)
	}
	return strings.TrimSpace(string(b))
}

// commit makes a repository, or goes on with it; it returns the commit.
func (r gitRoot) commit(repo string, f files) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, repo)
	if _, err := os.Stat(dir); err != nil {
		if err := os.Mkdir(dir, 0o755); err != nil {
			r.t.Fatal(err)
		}
		r.git(repo, "init", "-q", "-b", "main")
	}
	for name, text := range f {
		p, mode := filepath.Join(dir, name), os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git(repo, "add", ".")
	r.git(repo, "commit", "-q", "-m", "a commit")
	return r.git(repo, "rev-parse", "HEAD")
}

// serve serves the repositories to who gives this token; "" is everybody.
func (r gitRoot) serve(token string) (url string) {
	r.t.Helper()
	backend := &cgi.Handler{Path: r.backend, Dir: r.dir, Env: []string{"GIT_PROJECT_ROOT=" + r.dir, "GIT_HTTP_EXPORT_ALL=1",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); token != "" && password != token {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, req)
	}))
	r.t.Cleanup(s.Close)
	return s.URL
}

// gitServer serves one repository. It has branch main, an annotated tag v1 on
// its first commit, and a directory "sub" with a Dockerfile.
func gitServer(t *testing.T, d *den) (url, first string) {
	t.Helper()
	r := newGitRoot(t)
	first = r.commit("project.git", files{"Dockerfile": "FROM scratch\nCOPY . /\n", "version": "one\n", "tool": "#!/bin/sh\n"})
	r.git("project.git", "tag", "-a", "-m", "v1", "v1")
	r.commit("project.git", files{"version": "two\n", "sub/Dockerfile": "FROM scratch\nCOPY inner /\n", "sub/inner": "inner\n"})
	return r.serve("") + "/project.git", first
}

func TestGitContextsNameReferencesAndDirectories(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	url, first := gitServer(t, d)
	got := d.tree(url)
	got.holds(t, "version", "two\n")
	got.is(t, "tool", "file 0755 0:0")
	got.lacks(t, ".git")
	d.tree(url+"#v1").holds(t, "version", "one\n")
	d.tree(url+"#"+first).holds(t, "version", "one\n")
	d.tree(url+"#main:sub").holds(t, "inner", "inner\n")
	d.tree(url+"#:sub").holds(t, "inner", "inner\n")
	d.fails([]string{"build", url + "#nowhere"}, "nowhere")
	d.fails([]string{"build", url + "#main:absent"}, "absent")
	if got := d.steps(url); len(got) != 0 {
		t.Errorf("the second build of a commit executed %q", got)
	}
}

func TestPrivateRepositoriesWithSubmodulesAreContexts(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		library, r := newGitRoot(t), newGitRoot(t) // a token is given to one repository
		library.commit("library.git", files{"file": "of the library\n"})
		r.commit("project.git", files{"Dockerfile": "FROM scratch\nCOPY . /\n"})
		r.git("project.git", "submodule", "add", "-q", library.serve("")+"/library.git", "lib")
		r.commit("project.git", files{"marker": "x"})
		url := r.serve("t0ken") + "/project.git"
		d.fails([]string{"build", url}, "project.git", "GIT_AUTH_TOKEN")
		d.with("T=wrong").fails([]string{"build", "--secret", "id=GIT_AUTH_TOKEN,env=T", url}, "project.git")
		d = d.with("T=t0ken")
		got := d.tree("--secret", "id=GIT_AUTH_TOKEN,env=T", url)
		got.holds(t, "lib/file", "of the library\n")
		got.lacks(t, ".git", "lib/.git")
		ctx := d.dir(files{"Dockerfile": "FROM scratch\nADD " + url + " /x\nCOPY --from=named lib /named\n"})
		got = d.tree("--secret", "id=GIT_AUTH_TOKEN,env=T", "--build-context", "named="+url+"#main", ctx)
		got.holds(t, "x/lib/file", "of the library\n")
		got.holds(t, "named/file", "of the library\n")
		if at := grepTree(t, d.store(), "t0ken"); at != "" {
			t.Errorf("the store holds the token in %s", at)
		}
	})
}

func TestAddFetchesGitRepositories(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	url, first := gitServer(t, d)
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nADD " + url + " /head\nADD " + url + "#v1 /tag\nADD --keep-git-dir=true " + url + "#main /kept\n" +
		"ADD --checksum=" + first + " " + url + "#v1 /checked\nADD --chown=33:33 " + url + "#main:sub /sub\n"})
	got := d.tree(ctx)
	got.holds(t, "head/version", "two\n")
	got.holds(t, "tag/version", "one\n")
	got.holds(t, "checked/version", "one\n")
	got.is(t, "sub/inner", "file 0644 33:33")
	if _, ok := got["kept/.git/HEAD"]; !ok {
		t.Error("--keep-git-dir kept no .git")
	}
	got.lacks(t, "head/.git")
	d.fails([]string{"build", d.dir(files{"Dockerfile": "FROM scratch\nADD --checksum=" + strings.Repeat("a", 40) + " " + url + "#v1 /x\n"})}, strings.Repeat("a", 40))
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b) // a buffer takes everything
	_ = z.Close()
	return out.Bytes()
}
