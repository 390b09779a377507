package kaniko

import (
	"bufio"
	"context"
	"encoding/base64"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"

	"den/internal/build"
	"den/internal/cloud"
)

// Git are the values of --git.
type Git struct {
	Branch            string
	SingleBranch      bool
	Depth             int
	RecurseSubmodules bool
	InsecureSkipTLS   bool
}

// Set reads one "key=value"; --git may also have several, separated by commas.
func (g *Git) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			return invalid("invalid git flag %q, must be in the key=value format", part)
		}
		var err error
		switch k {
		case "branch":
			g.Branch = v
		case "single-branch":
			g.SingleBranch, err = strconv.ParseBool(v)
		case "depth":
			g.Depth, err = strconv.Atoi(v)
		case "recurse-submodules":
			g.RecurseSubmodules, err = strconv.ParseBool(v)
		case "insecure-skip-tls":
			g.InsecureSkipTLS, err = strconv.ParseBool(v)
		default:
			return invalid("invalid git flag %q, want branch, single-branch, depth, recurse-submodules or insecure-skip-tls", k)
		}
		if err != nil {
			return invalid("git flag %s: %q", k, v)
		}
	}
	return nil
}

// String is the flag's default in the help.
func (g *Git) String() string { return "" }

// Type is what help calls the value.
func (g *Git) Type() string { return "gitoptions" }

// A Source is where contexts come from besides the disk.
type Source struct {
	Stdin io.Reader
	Cloud *cloud.Client
}

// prefixes are what a context may begin with, as kaniko's error lists them.
const prefixes = "gs://, dir://, tar://, s3://, git://, https://"

// Open puts the context into a request. The Closer ends the reading of it.
func (o *Options) Open(ctx context.Context, from Source, r *build.Request) (io.Closer, error) {
	where := o.Context
	if o.Bucket != "" { // GCS was the first
		if where = o.Bucket; !strings.Contains(where, "://") {
			where = "gs://" + where
		}
	}
	if where == "" {
		return nil, invalid("please specify a path to the build context with the --context flag")
	}
	r.SubDir = o.ContextSubPath
	scheme, rest, ok := strings.Cut(where, "://")
	if !ok {
		return o.local(where, r)
	}
	if scheme == "git" || scheme == "https" && isGit(rest) {
		return nopCloser{}, o.git(rest, r)
	}
	if scheme == "dir" {
		return o.local(rest, r)
	}
	body, err := o.archive(ctx, from, scheme, rest, where)
	if err != nil {
		return nil, err
	}
	r.Tar = body
	return body, nil
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

func (o *Options) local(dir string, r *build.Request) (io.Closer, error) {
	r.Context = dir
	if filepath.IsAbs(r.File) || strings.Contains(r.File, "://") {
		return nopCloser{}, nil
	}
	if _, err := os.Stat(filepath.Join(dir, o.ContextSubPath, r.File)); err != nil {
		if _, missing := os.Stat(dir); missing != nil {
			return nil, invalid("build context %s: %v", dir, missing)
		}
		return nil, invalid("please provide a valid path to a Dockerfile within the build context with --dockerfile (%s has no %s)", dir, r.File)
	}
	return nopCloser{}, nil
}

// archive opens a tar wherever it is.
func (o *Options) archive(ctx context.Context, from Source, scheme, rest, where string) (io.ReadCloser, error) {
	switch scheme {
	case "tar":
		if rest == "stdin" {
			return io.NopCloser(bufio.NewReader(from.Stdin)), nil
		}
		return os.Open(rest)
	case "s3", "gs":
		object, err := cloud.ParseObject(where)
		if err != nil {
			return nil, err
		}
		if scheme == "s3" {
			return from.Cloud.S3(ctx, object)
		}
		return from.Cloud.GCS(ctx, object)
	case "https":
		if cloud.IsAzureBlob(where) {
			return from.Cloud.AzureBlob(ctx, where)
		}
		return from.Cloud.Web(ctx, where)
	}
	return nil, invalid("unknown build context prefix %s:// provided, please use one of the following: %s", scheme, prefixes)
}

// isGit says whether an https URL is a repository's.
func isGit(rest string) bool {
	before, _, _ := strings.Cut(rest, "#")
	before, _, _ = strings.Cut(before, "?")
	return strings.HasSuffix(before, ".git")
}

// git turns kaniko's "HOST/REPO.git#REF#COMMIT" into BuildKit's URL. As in kaniko
// "git" means https, .git is part of the context, and submodules are not fetched
// unless --git=recurse-submodules=true. Credentials go apart from the URL, so that
// no step and no log sees them.
func (o *Options) git(rest string, r *build.Request) error {
	parts := strings.Split(rest, "#")
	method := "https"
	if o.Env("GIT_PULL_METHOD") == "http" {
		method = "http"
	}
	u, err := url.Parse(method + "://" + parts[0])
	if err != nil || u.Host == "" {
		return invalid("git context: want git://HOST/REPOSITORY[#REF[#COMMIT]]")
	}
	user := u.User
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	if !strings.HasSuffix(u.Path, ".git") {
		u.Path = strings.TrimSuffix(u.Path, "/") + ".git"
	}
	ref := ""
	for _, p := range parts[1:] { // the last one says it best
		if p != "" {
			ref = p
		}
	}
	if o.Git.Branch != "" && len(parts) < 3 {
		ref = o.Git.Branch
	}
	q := url.Values{"keep-git-dir": {"true"}, "submodules": {strconv.FormatBool(o.Git.RecurseSubmodules)}}
	if ref != "" {
		q.Set("ref", ref)
	}
	if sub := strings.TrimPrefix(path.Clean("/"+o.ContextSubPath), "/"); sub != "" {
		q.Set("subdir", sub)
	}
	r.SubDir = ""
	remote := u.String()
	u.RawQuery = q.Encode()
	r.Context = u.String()
	if _, ok, err := dfgitutil.ParseGitRef(r.Context); err != nil || !ok {
		return invalid("git context %s: it is not one", remote)
	}
	r.GitAuth = o.gitAuth(remote, user)
	return nil
}

// gitAuth is what kaniko logs in with: GIT_TOKEN, else GIT_USERNAME and
// GIT_PASSWORD, else what the URL has.
func (o *Options) gitAuth(remote string, inURL *url.Userinfo) *build.GitAuth {
	user, password := o.Env("GIT_USERNAME"), o.Env("GIT_PASSWORD")
	if token := o.Env("GIT_TOKEN"); token != "" {
		user, password = token, ""
	}
	if user+password == "" && inURL != nil {
		user = inURL.Username()
		password, _ = inURL.Password()
	}
	if user+password == "" {
		return nil
	}
	return &build.GitAuth{Remote: remote, Header: "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))}
}
