package ops

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/progress"
)

// A gitOp is the tree of a commit. CacheMap asks the server what the reference
// means now, and from then on the op is about that commit. No git binary is
// involved; filters, hooks and large-file storage are not applied.
type gitOp struct {
	env   *Env
	v     *llb.Vertex
	attrs gitAttrs
	pin   gitPin // after CacheMap
}

type gitAttrs struct {
	remote     string
	ref        string // "" is the default branch
	subdir     string // relative; "" is all
	checksum   string // prefix of the commit or tag that is expected
	keepGitDir bool
	noModules  bool // no submodules
	byCommit   bool // checksum is the commit; the reference is not asked for
	commitTime bool // mtime of all files is the commit's

	authTokenSecret, authHeaderSecret string
	sshID, knownHosts                 string
}

// A gitPin is what a reference meant when the build began.
type gitPin struct {
	ref string // full name, or a commit id
	sha string // what ref names: a commit or an annotated tag
	// commit is what sha names if that is a tag, where it is known.
	commit string
}

func newGitOp(env *Env, v *llb.Vertex, id string) (solver.Op, error) {
	a, err := parseGitAttrs(id, v.Op.GetSource().GetAttrs())
	if err != nil {
		return nil, fmt.Errorf("source git://%.200q: %w", redact(id), err)
	}
	return &gitOp{env: env, v: v, attrs: a}, nil
}

var hexadecimal = regexp.MustCompile(`^[0-9a-fA-F]+$`)

func parseGitAttrs(id string, attrs map[string]string) (gitAttrs, error) {
	u, err := parseGitURL(id)
	if err != nil {
		return gitAttrs{}, err
	}
	a := gitAttrs{remote: u.Remote}
	if u.Opts != nil {
		a.ref, a.subdir = u.Opts.Ref, u.Opts.Subdir
	}
	for k, val := range attrs {
		if err := a.set(u, k, val); err != nil {
			return a, fmt.Errorf("attribute %s: %w", k, err)
		}
	}
	switch {
	case strings.HasPrefix(a.ref, "-"), strings.ContainsAny(a.ref, " \t\r\n\x00"):
		return a, fmt.Errorf("reference %q: %w", a.ref, errdefs.ErrInvalidArgument)
	case a.checksum != "" && !hexadecimal.MatchString(a.checksum):
		return a, fmt.Errorf("invalid checksum %s for Git URL, expected hex commit hash: %w", a.checksum, errdefs.ErrInvalidArgument)
	case a.byCommit && !gitutil.IsCommitSHA(a.checksum):
		return a, fmt.Errorf("fetch-by-commit requires a full commit SHA checksum, got %q: %w", a.checksum, errdefs.ErrInvalidArgument)
	}
	a.subdir = strings.TrimPrefix(path.Join("/", a.subdir), "/")
	return a, nil
}

func (a *gitAttrs) set(id *gitutil.GitURL, k, val string) error {
	switch k {
	case pb.AttrFullRemoteURL:
		u, err := parseGitURL(val)
		if err != nil {
			return err
		}
		// The identifier is what policies and people see; it has to say the truth.
		if !strings.EqualFold(u.Host, id.Host) || repositoryPath(u.Path) != repositoryPath(id.Path) {
			return fmt.Errorf("does not match the source's identifier: %w", errdefs.ErrInvalidArgument)
		}
		a.remote = u.Remote
	case pb.AttrKeepGitDir:
		a.keepGitDir = val == "true"
	case pb.AttrAuthHeaderSecret:
		a.authHeaderSecret = val
	case pb.AttrAuthTokenSecret:
		a.authTokenSecret = val
	case pb.AttrKnownSSHHosts:
		a.knownHosts = val
	case pb.AttrMountSSHSock:
		a.sshID = val
	case pb.AttrGitChecksum:
		a.checksum = val
	case pb.AttrGitSkipSubmodules:
		a.noModules = val == "true"
	case pb.AttrGitFetchByCommit:
		a.byCommit = val == "true"
	case pb.AttrGitMTime:
		if val != "" && val != "checkout" && val != "commit" {
			return fmt.Errorf("%q: %w", val, errdefs.ErrInvalidArgument)
		}
		a.commitTime = val == "commit"
	case pb.AttrGitAdvice:
		// About the messages of the git binary.
	default:
		// Among them signatures and bundles: what is not checked must not pass
		// for checked.
		return fmt.Errorf("den does not support it: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

func parseGitURL(s string) (*gitutil.GitURL, error) {
	if !gitutil.IsGitTransport(s) {
		s = "https://" + s
	}
	u, err := gitutil.ParseURL(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return u, nil
}

func repositoryPath(p string) string { return strings.TrimSuffix(path.Join("/", p), ".git") }

// CacheMap pins the reference to a commit.
func (o *gitOp) CacheMap(ctx context.Context, sink progress.Sink) (*solver.CacheMap, error) {
	pin, err := o.resolve(ctx)
	if err != nil {
		return nil, fmt.Errorf("git %s: %w", redact(o.attrs.remote), err)
	}
	o.pin = pin
	newStepLog(sink, o.v.Digest, 1).Write(fmt.Appendf(nil, "%s\t%s\n", pin.sha, pin.ref))
	return &solver.CacheMap{Digest: sourceKey(o.key())}, nil
}

// key is BuildKit's: the commit and what is done with it.
func (o *gitOp) key() string {
	a := o.attrs
	key := o.pin.sha
	if o.pin.commit != "" && !a.keepGitDir {
		key = o.pin.commit // other tags of the commit make the same tree
	}
	if a.keepGitDir {
		key += ".git"
		if o.pin.ref != "" {
			key += "#" + o.pin.ref
		}
	}
	if a.subdir != "" {
		key += ":" + a.subdir
	}
	if a.noModules {
		key += "(skip-submodules)"
	}
	if a.commitTime {
		key += "(mtime=commit)"
	}
	return key
}

func (o *gitOp) resolve(ctx context.Context) (gitPin, error) {
	a := o.attrs
	if gitutil.IsCommitSHA(a.ref) {
		if a.checksum != "" && !strings.HasPrefix(a.ref, a.checksum) {
			return gitPin{}, checksumError(a.checksum, a.ref)
		}
		return gitPin{ref: a.ref, sha: a.ref}, nil
	}
	if a.byCommit {
		ref := a.ref
		if ref == "" {
			ref = a.checksum
		} else if !strings.HasPrefix(ref, "refs/") {
			ref = "refs/heads/" + ref
		}
		return gitPin{ref: ref, sha: a.checksum}, nil
	}
	s, err := o.env.openGit(ctx, gitRemote{url: a.remote, attrs: a})
	if err != nil {
		return gitPin{}, err
	}
	refs, head := s.references()
	err = s.close()
	if err != nil {
		return gitPin{}, err
	}
	return choosePin(refs, head, a)
}

// choosePin finds what a reference means among those of a repository: a full
// name, else a branch, else a tag. Names of peeled tags end in "^{}".
func choosePin(refs map[string]string, head string, a gitAttrs) (gitPin, error) {
	ref := a.ref
	if ref == "" {
		if ref = strings.TrimPrefix(head, "refs/heads/"); ref == "" {
			return gitPin{}, fmt.Errorf("no default branch; name one: %w", errdefs.ErrNotFound)
		}
	}
	full := "refs/" + strings.TrimPrefix(ref, "refs/")
	branch := "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/")
	tag := "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")
	pin := gitPin{}
	for _, name := range []string{full, branch, tag} {
		if sha := refs[name]; sha != "" {
			pin = gitPin{ref: name, sha: sha}
			break
		}
	}
	if pin.sha == "" {
		return gitPin{}, fmt.Errorf("repository does not contain ref %s: %w", ref, errdefs.ErrNotFound)
	}
	if pin.ref == tag {
		pin.commit = refs[tag+"^{}"]
	}
	if a.checksum != "" && !strings.HasPrefix(pin.sha, a.checksum) && !strings.HasPrefix(pin.commit, a.checksum) {
		return gitPin{}, checksumError(a.checksum, pin.sha)
	}
	return pin, nil
}

func checksumError(want, got string) error {
	return fmt.Errorf("expected checksum to match %s, got %s: %w", want, got, errdefs.ErrFailedPrecondition)
}

// Exec fetches the commit and makes a layer of its files.
func (o *gitOp) Exec(ctx context.Context, _ []solver.Result, sink progress.Sink) (_ []solver.Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("git %s: %w", redact(o.attrs.remote), err)
		}
	}()
	scratch, err := o.env.Store.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	c := &gitCheckout{
		env: o.env, attrs: o.attrs, pin: o.pin, dir: scratch.Dir(),
		log: &gitLog{to: newStepLog(sink, o.v.Digest, 2)},
	}
	files, err := c.files(ctx)
	if err != nil {
		return nil, err
	}
	r, err := o.env.build(ctx, files, o.v.Digest)
	if err != nil {
		return nil, err
	}
	return []solver.Result{r}, nil
}
