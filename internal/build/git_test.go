package build

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	gitcache "github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/server"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// gitRepo serves one repository, with go-git's own server.
type gitRepo struct{ dir string }

// gitServer serves a repository with one commit on main and returns its URL.
func gitServer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := write(t, t.TempDir(), files)
	repo, err := git.PlainInitWithOptions(dir, &git.PlainInitOptions{
		InitOptions: git.InitOptions{DefaultBranch: plumbing.NewBranchReferenceName("main")},
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := repo.Worktree()
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.AddWithOptions(&git.AddOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	who := &object.Signature{Name: "den", Email: "den@example.com", When: time.Unix(1700000000, 0)}
	if _, err := tree.Commit("first", &git.CommitOptions{Author: who}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gitRepo{dir})
	t.Cleanup(srv.Close)
	return srv.URL + "/repo.git"
}

// Load opens the repository for go-git's server.
func (g gitRepo) Load(*transport.Endpoint) (storer.Storer, error) {
	return filesystem.NewStorage(osfs.New(filepath.Join(g.dir, ".git")), gitcache.NewObjectLRUDefault()), nil
}

func (g gitRepo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := g.serve(w, r); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

func (g gitRepo) serve(w http.ResponseWriter, r *http.Request) error {
	ep, err := transport.NewEndpoint("http://host/repo")
	if err != nil {
		return err
	}
	session, err := server.NewServer(g).NewUploadPackSession(ep, nil)
	if err != nil {
		return err
	}
	switch _, what, _ := strings.Cut(r.URL.Path, ".git/"); what {
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
