package ops

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	gitcache "github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/index"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/server"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// A gitServer serves the repositories below a directory over http, by the
// library's own server: one that knows neither shallow clones nor commits by id.
type gitServer struct {
	dir  string
	url  string
	auth string // required Authorization, if any
}

func newGitServer(t *testing.T) *gitServer {
	s := &gitServer{dir: t.TempDir()}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// Load opens a repository for the library's server.
func (s *gitServer) Load(ep *transport.Endpoint) (storer.Storer, error) {
	dir := filepath.Join(s.dir, filepath.Clean("/"+ep.Path), ".git")
	if _, err := os.Stat(dir); err != nil {
		return nil, transport.ErrRepositoryNotFound
	}
	return filesystem.NewStorage(osfs.New(dir), gitcache.NewObjectLRUDefault()), nil
}

func (s *gitServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.auth != "" && r.Header.Get("Authorization") != s.auth {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if err := s.serve(w, r); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

func (s *gitServer) serve(w http.ResponseWriter, r *http.Request) error {
	repo, what, _ := strings.Cut(r.URL.Path, ".git/")
	ep, err := transport.NewEndpoint("http://host" + repo)
	if err != nil {
		return err
	}
	session, err := server.NewServer(s).NewUploadPackSession(ep, nil)
	if err != nil {
		return err
	}
	switch what {
	case "info/refs":
		adv, err := session.AdvertisedReferencesContext(r.Context())
		if err != nil {
			return err
		}
		adv.Prefix = [][]byte{[]byte("# service=git-upload-pack"), pktline.Flush}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		return adv.Encode(w)
	case "git-upload-pack":
		req := packp.NewUploadPackRequest()
		if err := req.Decode(r.Body); err != nil {
			return err
		}
		resp, err := session.UploadPack(r.Context(), req)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		return resp.Encode(w)
	}
	return fmt.Errorf("no such path %s", r.URL.Path)
}

// realGitServer serves the same directory by git itself.
func (s *gitServer) realGitServer(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, statErr := os.Stat(backend); err != nil || statErr != nil {
		t.Skip("needs git-http-backend, to serve shallow clones")
	}
	inner := &cgi.Handler{
		Path: backend,
		Env: []string{
			"GIT_PROJECT_ROOT=" + s.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=2",
			"GIT_CONFIG_KEY_0=uploadpack.allowReachableSHA1InWant", "GIT_CONFIG_VALUE_0=true",
			"GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*",
		},
		Stderr: io.Discard,
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = strings.Replace(r.URL.Path, ".git/", "/.git/", 1)
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// A gitTestRepo is a repository of a gitServer.
type gitTestRepo struct {
	t    *testing.T
	dir  string
	repo *git.Repository
}

func (s *gitServer) repo(t *testing.T, name string) *gitTestRepo {
	t.Helper()
	r := &gitTestRepo{t: t, dir: filepath.Join(s.dir, name)}
	var err error
	r.repo, err = git.PlainInitWithOptions(r.dir, &git.PlainInitOptions{
		InitOptions: git.InitOptions{DefaultBranch: "refs/heads/main"},
	})
	r.must(err)
	return r
}

func (r *gitTestRepo) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// commit writes files and commits them; a link is a file whose content begins
// with "-> ", a script one whose name ends in ".sh".
func (r *gitTestRepo) commit(files map[string]string) string {
	r.t.Helper()
	wt, err := r.repo.Worktree()
	r.must(err)
	for name, text := range files {
		full := filepath.Join(r.dir, name)
		r.must(os.MkdirAll(filepath.Dir(full), 0o755))
		switch target, isLink := strings.CutPrefix(text, "-> "); {
		case isLink:
			r.must(os.Symlink(target, full))
		case strings.HasSuffix(name, ".sh"):
			r.must(os.WriteFile(full, []byte(text), 0o755))
		default:
			r.must(os.WriteFile(full, []byte(text), 0o644))
		}
		_, err := wt.Add(name)
		r.must(err)
	}
	return r.commitIndex(wt)
}

func (r *gitTestRepo) commitIndex(wt *git.Worktree) string {
	r.t.Helper()
	who := &object.Signature{Name: "n", Email: "e", When: time.Unix(1_600_000_000, 0)}
	h, err := wt.Commit("message", &git.CommitOptions{Author: who, Committer: who, AllowEmptyCommits: true})
	r.must(err)
	return h.String()
}

// submodule adds a link to another repository's commit.
func (r *gitTestRepo) submodule(path, url, sha string) string {
	r.t.Helper()
	idx, err := r.repo.Storer.Index()
	r.must(err)
	idx.Entries = append(idx.Entries, &index.Entry{Name: path, Hash: plumbing.NewHash(sha), Mode: filemode.Submodule})
	r.must(r.repo.Storer.SetIndex(idx))
	return r.commit(map[string]string{".gitmodules": fmt.Sprintf("[submodule %q]\n\tpath = %s\n\turl = %s\n", path, path, url)})
}

func (r *gitTestRepo) branch(name, sha string) {
	r.t.Helper()
	r.must(r.repo.Storer.SetReference(plumbing.NewHashReference(plumbing.NewBranchReferenceName(name), plumbing.NewHash(sha))))
}

// tag makes an annotated tag and returns the tag object's id.
func (r *gitTestRepo) tag(name, sha string) string {
	r.t.Helper()
	ref, err := r.repo.CreateTag(name, plumbing.NewHash(sha), &git.CreateTagOptions{
		Message: "m", Tagger: &object.Signature{Name: "n", Email: "e", When: time.Unix(1_600_000_000, 0)},
	})
	r.must(err)
	return ref.Hash().String()
}

func newGit(t *testing.T, env *Env, url string, attrs map[string]string) *gitOp {
	t.Helper()
	_, rest, _ := strings.Cut(url, "://")
	if _, host, ok := strings.Cut(rest, "@"); ok {
		rest = host // the identifier names no user
	}
	full, _, _ := strings.Cut(url, "#")
	all := map[string]string{"git.fullurl": full}
	for k, v := range attrs {
		all[k] = v
	}
	op, err := newGitOp(env, sourceVertex("git://"+rest, all), rest)
	if err != nil {
		t.Fatal(err)
	}
	return op.(*gitOp)
}
