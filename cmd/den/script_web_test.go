package main

import (
	"encoding/pem"
	"fmt"
	stdio "io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
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
	"github.com/rogpeppe/go-internal/testscript"
)

// serveFiles serves $WORK/www at $WEB, by TLS at $WEB_TLS with the authority
// $WORK/ca.pem, and the repository $WORK/www/repo.git for those who know the token.
func serveFiles(env *testscript.Env) error {
	dir := filepath.Join(env.WorkDir, "www")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.Handle("/repo.git/", gitHandler{filepath.Join(dir, "repo")})
	// GCS's object names are one escaped element of the path.
	mux.HandleFunc("/storage/v1/b/{bucket}/o/{object}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(dir, filepath.Base(r.PathValue("bucket")), filepath.Base(r.PathValue("object"))))
	})
	plain, secured := httptest.NewServer(mux), httptest.NewUnstartedServer(mux)
	secured.Config.ErrorLog = log.New(stdio.Discard, "", 0)
	secured.StartTLS()
	env.Defer(plain.Close)
	env.Defer(secured.Close)
	env.Setenv("WEB", strings.TrimPrefix(plain.URL, "http://"))
	env.Setenv("WEB_TLS", strings.TrimPrefix(secured.URL, "https://"))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secured.Certificate().Raw})
	return os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), ca, 0o644)
}

// mkgitCommand makes a repository with one commit on main of a directory.
func mkgitCommand(ts *testscript.TestScript, _ bool, args []string) {
	repo, err := git.PlainInitWithOptions(ts.MkAbs(args[0]), &git.PlainInitOptions{
		InitOptions: git.InitOptions{DefaultBranch: plumbing.NewBranchReferenceName("main")},
	})
	ts.Check(err)
	tree, err := repo.Worktree()
	ts.Check(err)
	ts.Check(tree.AddWithOptions(&git.AddOptions{All: true}))
	who := &object.Signature{Name: "den", Email: "den@example.com", When: time.Unix(1700000000, 0)}
	hash, err := tree.Commit("first", &git.CommitOptions{Author: who})
	ts.Check(err)
	ts.Setenv("COMMIT", hash.String())
}

// A gitHandler serves one repository to those who say the token "sesame".
type gitHandler struct{ dir string }

// Load opens the repository for go-git's server.
func (g gitHandler) Load(*transport.Endpoint) (storer.Storer, error) {
	return filesystem.NewStorage(osfs.New(filepath.Join(g.dir, ".git")), gitcache.NewObjectLRUDefault()), nil
}

func (g gitHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if user, _, ok := r.BasicAuth(); !ok || user != "sesame" {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if err := g.serve(w, r); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

func (g gitHandler) serve(w http.ResponseWriter, r *http.Request) error {
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
