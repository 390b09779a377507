package ops

import (
	"bytes"
	"context"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/progress"
)

var someFiles = map[string]string{
	"README": "hello", "run.sh": "#!/bin/sh", "dir/sub/file": "deep", "dir/link": "-> sub/file", "dir.txt": "sorts between",
}

const someContent = `README -rw-r--r-- hello
dir/ drwxr-xr-x
dir/link Lrwxrwxrwx -> sub/file
dir/sub/ drwxr-xr-x
dir/sub/file -rw-r--r-- deep
dir.txt -rw-r--r-- sorts between
run.sh -rwxr-xr-x #!/bin/sh
`

func TestGitReferencesOfAllKindsAreCheckedOut(t *testing.T) {
	srv := newGitServer(t)
	repo := srv.repo(t, "r")
	first := repo.commit(map[string]string{"old": "1"})
	repo.branch("feature/x", first)
	tag := repo.tag("v1", first)
	head := repo.commit(someFiles)
	env := storeEnv(t, t.TempDir())
	old := "old -rw-r--r-- 1\n"
	withOld := strings.Replace(someContent, "run.sh", "old -rw-r--r-- 1\nrun.sh", 1)
	check := func(t *testing.T, url string, peels bool) {
		for _, tt := range []struct{ fragment, want, key string }{
			{"", withOld, head},
			{"#main", withOld, head},
			{"#refs/heads/main", withOld, head},
			{"#" + head, withOld, head},
			{"#" + first, old, first},
			{"#feature/x", old, first},
			{"#v1", old, first},
			{"#refs/tags/v1", old, first},
			{"#" + tag, old, tag},
			{"#main:dir", "link Lrwxrwxrwx -> sub/file\nsub/ drwxr-xr-x\nsub/file -rw-r--r-- deep\n", head + ":dir"},
			{"#:dir/sub", "file -rw-r--r-- deep\n", head + ":dir/sub"},
		} {
			t.Run(tt.fragment, func(t *testing.T) {
				r, m := execOne(t, newGit(t, env, url+"/r.git"+tt.fragment, nil))
				if diff := cmp.Diff(tt.want, content(t, r)); diff != "" {
					t.Error(diff)
				}
				if !peels && strings.Contains(tt.fragment, "v1") {
					tt.key = tag
				}
				if m.Digest != sourceKey(tt.key) {
					t.Errorf("key is not that of %s", tt.key)
				}
			})
		}
	}
	t.Run("plain server", func(t *testing.T) { check(t, srv.url, false) })
	t.Run("git's own server", func(t *testing.T) { check(t, srv.realGitServer(t), true) })
}

func TestGitCommitTimeMakesTheSameLayerAnywhere(t *testing.T) {
	srv := newGitServer(t)
	srv.repo(t, "r").commit(someFiles)
	attrs := map[string]string{pb.AttrGitMTime: "commit"}
	a, _ := execOne(t, newGit(t, storeEnv(t, t.TempDir()), srv.url+"/r.git", attrs))
	b, _ := execOne(t, newGit(t, storeEnv(t, t.TempDir()), srv.url+"/r.git", attrs))
	if a.ID() != b.ID() {
		t.Error("two stores, two layers")
	}
}

func TestGitErrorsSayWhatIsWrong(t *testing.T) {
	srv := newGitServer(t)
	repo := srv.repo(t, "r")
	sha := repo.commit(someFiles)
	env := storeEnv(t, t.TempDir())
	for _, tt := range []struct {
		name, url string
		attrs     map[string]string
		want      string
		class     func(error) bool
	}{
		{"branch", srv.url + "/r.git#none", nil, "does not contain ref none", errdefs.IsNotFound},
		{"commit", srv.url + "/r.git#" + strings.Repeat("a", 40), nil, "not in the repository", errdefs.IsNotFound},
		{"sub-directory", srv.url + "/r.git#main:none", nil, `sub-directory "none"`, errdefs.IsNotFound},
		{"sub-directory by link", srv.url + "/r.git#main:dir/link", nil, `sub-directory "dir/link"`, errdefs.IsNotFound},
		{"repository", srv.url + "/none.git", nil, "repository not found", errdefs.IsNotFound},
		{"checksum", srv.url + "/r.git", map[string]string{pb.AttrGitChecksum: "abcd"}, "expected checksum to match abcd, got " + sha, errdefs.IsFailedPrecondition},
	} {
		t.Run(tt.name, func(t *testing.T) {
			op := newGit(t, env, tt.url, tt.attrs)
			_, err := op.CacheMap(context.Background(), progress.Discard)
			if err == nil {
				_, err = op.Exec(context.Background(), nil, progress.Discard)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !tt.class(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestGitTokenReachesTheServer(t *testing.T) {
	srv := newGitServer(t)
	srv.repo(t, "r").commit(map[string]string{"a": "x"})
	srv.auth = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:tok"))
	env := storeEnv(t, t.TempDir())
	attrs := map[string]string{pb.AttrAuthTokenSecret: "GIT_AUTH_TOKEN", pb.AttrAuthHeaderSecret: "GIT_AUTH_HEADER"}
	op := newGit(t, env, srv.url+"/r.git", attrs)
	if _, err := op.CacheMap(context.Background(), progress.Discard); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "GIT_AUTH_TOKEN") {
		t.Errorf("without a token: %v", err)
	}
	env.Secrets = secretMap{"GIT_AUTH_TOKEN": "tok\n"}
	r, _ := execOne(t, newGit(t, env, srv.url+"/r.git", attrs))
	if got := content(t, r); got != "a -rw-r--r-- x\n" {
		t.Errorf("content %q", got)
	}
}

func TestGitTokenDoesNotReachSubmodules(t *testing.T) {
	public, private := newGitServer(t), newGitServer(t)
	sha := private.repo(t, "lib").commit(map[string]string{"a": "x"})
	private.auth = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:tok"))
	repo := public.repo(t, "r")
	repo.commit(map[string]string{"o": "x"})
	repo.submodule("lib", private.url+"/lib.git", sha)
	env := storeEnv(t, t.TempDir())
	env.Secrets = secretMap{"GIT_AUTH_TOKEN": "tok\n"}
	op := newGit(t, env, public.url+"/r.git", map[string]string{pb.AttrAuthTokenSecret: "GIT_AUTH_TOKEN"})
	if _, err := op.CacheMap(context.Background(), progress.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := op.Exec(context.Background(), nil, progress.Discard); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "github.com only") {
		t.Errorf("error is %v", err)
	}
}

func TestGitAuthIsForOneRepository(t *testing.T) {
	srv, other := newGitServer(t), newGitServer(t)
	srv.repo(t, "r").commit(map[string]string{"a": "x"})
	srv.repo(t, "s").commit(map[string]string{"a": "x"})
	srv.auth, other.auth = "Basic own", "Basic own"
	sha := other.repo(t, "lib").commit(map[string]string{"a": "x"})
	repo := srv.repo(t, "m")
	repo.commit(map[string]string{"o": "x"})
	repo.submodule("lib", other.url+"/lib.git", sha)
	try := func(remote, name string) error {
		env := storeEnv(t, t.TempDir())
		env.GitAuth = &GitAuth{Remote: srv.url + remote, Header: "Basic own"}
		op := newGit(t, env, srv.url+name, nil)
		if _, err := op.CacheMap(context.Background(), progress.Discard); err != nil {
			return err
		}
		_, err := op.Exec(context.Background(), nil, progress.Discard)
		return err
	}
	if err := try("/r.git", "/r.git"); err != nil {
		t.Error(err)
	}
	if err := try("/r.git", "/s.git"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("another repository of the host: %v", err)
	}
	if err := try("/m.git", "/m.git"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "submodule") {
		t.Errorf("a submodule on another host: %v", err)
	}
}

func TestGitLogHasLinesAsTheyEnd(t *testing.T) {
	var got bytes.Buffer
	l := &gitLog{to: &got}
	for _, s := range []string{"Counting: 1%\r", "Counting: 2%\rCounting: 3%", "\rCounting: 100%, done.\nplain", " line\n", strings.Repeat("x", 2*maxGitLine), "\n", "no end"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	if want := "Counting: 100%, done.\nplain line\n" + strings.Repeat("x", maxGitLine) + "\n"; got.String() != want {
		t.Errorf("log is %.200q", got.String())
	}
}

func TestGitSubmodulesAreFetched(t *testing.T) {
	srv := newGitServer(t)
	inner := srv.repo(t, "inner")
	innerSHA := inner.commit(map[string]string{"i": "inner"})
	middle := srv.repo(t, "middle")
	middle.commit(map[string]string{"m": "middle"})
	middleSHA := middle.submodule("deep", "../inner.git", innerSHA)
	outer := srv.repo(t, "outer")
	outer.commit(map[string]string{"o": "outer"})
	outer.submodule("lib/middle", srv.url+"/middle.git", middleSHA)

	env := storeEnv(t, t.TempDir())
	r, _ := execOne(t, newGit(t, env, srv.url+"/outer.git", nil))
	got := content(t, r)
	for _, want := range []string{"o -rw-r--r-- outer\n", "lib/middle/m -rw-r--r-- middle\n", "lib/middle/deep/i -rw-r--r-- inner\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	r, _ = execOne(t, newGit(t, env, srv.url+"/outer.git#main:lib/middle/deep", nil))
	if got := content(t, r); got != "i -rw-r--r-- inner\n" {
		t.Errorf("sub-directory in a submodule: %q", got)
	}
	r, _ = execOne(t, newGit(t, env, srv.url+"/outer.git", map[string]string{pb.AttrGitSkipSubmodules: "true"}))
	if got := content(t, r); strings.Contains(got, "inner") || !strings.Contains(got, "lib/middle/ drwxr-xr-x\n") {
		t.Errorf("without submodules:\n%s", got)
	}
}

func TestGitSubmodulesReachNoLocalFile(t *testing.T) {
	srv := newGitServer(t)
	secret := srv.repo(t, "secret")
	sha := secret.commit(map[string]string{"s": "secret"})
	for _, url := range []string{"file://" + secret.dir, secret.dir, "ext::sh -c true"} {
		repo := srv.repo(t, "r"+strings.Trim(strings.NewReplacer("/", "", ":", "", " ", "").Replace(url), "."))
		repo.commit(map[string]string{"o": "x"})
		repo.submodule("lib", url, sha)
		op := newGit(t, storeEnv(t, t.TempDir()), srv.url+"/"+filepath.Base(repo.dir)+".git", nil)
		if _, err := op.CacheMap(context.Background(), progress.Discard); err != nil {
			t.Fatal(err)
		}
		if _, err := op.Exec(context.Background(), nil, progress.Discard); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestKeptGitDirWorksWithGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git, to read the result")
	}
	srv := newGitServer(t)
	repo := srv.repo(t, "r")
	repo.commit(map[string]string{"old": "1"})
	sha := repo.commit(someFiles)
	env := storeEnv(t, t.TempDir())
	for _, url := range []string{srv.url, srv.realGitServer(t)} {
		r, m := execOne(t, newGit(t, env, url+"/r.git#main", map[string]string{pb.AttrKeepGitDir: "true"}))
		if want := sourceKey(sha + ".git#refs/heads/main"); m.Digest != want {
			t.Error("another key than BuildKit's")
		}
		trees, err := r.Trees(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		work := t.TempDir()
		if out, err := exec.Command("cp", "-a", trees[0].Dirs()[0]+"/.", work).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		run := func(args ...string) string {
			cmd := exec.Command("git", append([]string{"-C", work, "-c", "safe.directory=*"}, args...)...)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("git %v: %v: %s", args, err, out)
			}
			return strings.TrimSpace(string(out))
		}
		if got := run("rev-parse", "HEAD"); got != sha {
			t.Errorf("HEAD is %s, want %s", got, sha)
		}
		if got := run("status", "--porcelain"); got != "" {
			t.Errorf("status: %s", got)
		}
		if got := run("rev-list", "--count", "HEAD"); url != srv.url && got != "1" {
			t.Errorf("fetched %s commits, want the one that is needed", got)
		}
		if got := run("remote", "get-url", "origin"); got != url+"/r.git" {
			t.Errorf("origin is %s", got)
		}
	}
}

func TestGitIdentifierAndURLHaveToAgree(t *testing.T) {
	_, err := parseGitAttrs("github.com/a/b#main", map[string]string{pb.AttrFullRemoteURL: "https://evil.example/a/b"})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	a, err := parseGitAttrs("github.com/a/b#main:sub", map[string]string{pb.AttrFullRemoteURL: "git@github.com:a/b.git"})
	if err != nil || a.remote != "git@github.com:a/b.git" || a.ref != "main" || a.subdir != "sub" {
		t.Errorf("%+v, %v", a, err)
	}
	for _, id := range []string{"host/r#--upload-pack=x", "host/r#a b", "file:///etc"} {
		if a, err := parseGitAttrs(id, nil); err == nil && a.remote != "https://file:///etc" {
			t.Errorf("%s: accepted as %+v", id, a)
		}
	}
}

func TestSignaturesAreNotPassedOver(t *testing.T) {
	_, err := parseGitAttrs("host/r", map[string]string{pb.AttrGitSignatureVerifyPubKey: "key"})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v", err)
	}
}

func TestRelativeSubmoduleURLs(t *testing.T) {
	for _, tt := range []struct{ parent, sub, want string }{
		{"https://h/a/b.git", "../c.git", "https://h/a/c.git"},
		{"https://h/a/b.git", "./c", "https://h/a/b.git/c"},
		{"git@h:a/b.git", "../c.git", "git@h:a/c.git"},
		{"https://h/a", "https://other/x", "https://other/x"},
		{"https://h/a", "git@other:x", "git@other:x"},
	} {
		if got, err := submoduleURL(tt.parent, tt.sub); err != nil || got != tt.want {
			t.Errorf("%s + %s = %s, %v; want %s", tt.parent, tt.sub, got, err, tt.want)
		}
	}
}
