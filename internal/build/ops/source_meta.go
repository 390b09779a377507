package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/oci"
	"den/internal/progress"
)

// maxCommitBytes bounds a commit object, whose message is as long as its author likes.
const maxCommitBytes = 1 << 20

// SourceMeta is what a frontend asks of a source before it is part of a
// definition: the commit of a git reference, the time of a file on the web. A
// local directory has neither, as with BuildKit.
func SourceMeta(ctx context.Context, env *Env, src *pb.SourceOp, v oci.Digest, sink progress.Sink) (*sourceresolver.MetaResponse, error) {
	out := &sourceresolver.MetaResponse{Op: src}
	op, err := newSourceOp(env, &llb.Vertex{
		Digest: v, Op: &pb.Op{Op: &pb.Op_Source{Source: src}}, Meta: &pb.OpMetadata{},
	})
	if err != nil {
		return nil, err
	}
	switch op := op.(type) {
	case *gitOp:
		out.Git, err = op.meta(ctx, sink)
	case *httpOp:
		out.HTTP, err = op.meta(ctx, sink)
	case *localOp:
	default:
		err = fmt.Errorf("source %.200s: it has no time: %w", src.GetIdentifier(), errdefs.ErrNotImplemented)
	}
	return out, err
}

// meta fetches the commit that the reference means now.
func (o *gitOp) meta(ctx context.Context, sink progress.Sink) (_ *sourceresolver.ResolveGitResponse, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("git %s: %w", redact(o.attrs.remote), err)
		}
	}()
	if o.pin, err = o.resolve(ctx); err != nil {
		return nil, err
	}
	scratch, err := o.env.Store.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	c := &gitCheckout{env: o.env, attrs: o.attrs, pin: o.pin, dir: scratch.Dir(), log: newStepLog(sink, o.v.Digest, 2)}
	repo, commit, err := c.fetch(ctx, gitRemote{url: o.attrs.remote, attrs: o.attrs}, o.pin.sha)
	if err != nil {
		return nil, err
	}
	if err := c.check(o.pin.sha, commit); err != nil {
		return nil, err
	}
	object, err := repo.st.EncodedObject(plumbing.CommitObject, commit.Hash)
	if err != nil {
		return nil, err
	}
	if object.Size() > maxCommitBytes {
		return nil, fmt.Errorf("commit %s of %d bytes: %w", commit.Hash, object.Size(), oci.ErrTooLarge)
	}
	r, err := object.Reader()
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	return &sourceresolver.ResolveGitResponse{
		Checksum: o.pin.sha, Ref: o.pin.ref, CommitChecksum: commit.Hash.String(), CommitObject: raw,
	}, nil
}

// meta asks the server for the file, which is then in the store.
func (o *httpOp) meta(ctx context.Context, sink progress.Sink) (*sourceresolver.ResolveHTTPResponse, error) {
	if err := o.find(ctx, sink); err != nil {
		return nil, err
	}
	out := &sourceresolver.ResolveHTTPResponse{Digest: o.found.Digest, Filename: o.filename()}
	if t, err := http.ParseTime(o.found.LastModified); err == nil {
		out.LastModified = &t
	}
	return out, nil
}
