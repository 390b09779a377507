package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
)

// localScheme begins the identifier of a local source.
const localScheme = "local://"

// Local is a directory that a build reads where it is.
type Local struct {
	// Dir is the directory.
	Dir string
}

// localOp is a source op that reads a directory of the user's.
type localOp struct {
	env    *Env
	vertex oci.Digest
	name   string
	dir    string
	filter localFilter
	tree   *localTree
}

// newLocalOp reads the directory that v names. Owners are not kept, as with
// docker's client: everything belongs to 0:0.
func newLocalOp(env *Env, v *llb.Vertex) (solver.Op, error) {
	src := v.Op.GetSource()
	name, ok := strings.CutPrefix(src.GetIdentifier(), localScheme)
	if !ok {
		return nil, fmt.Errorf("source %.200q: not a local source: %w", src.GetIdentifier(), errdefs.ErrInvalidArgument)
	}
	op := &localOp{env: env, vertex: v.Digest, name: name}
	for key, value := range src.GetAttrs() {
		if err := op.attr(key, value); err != nil {
			return nil, fmt.Errorf("source %s: attribute %s: %w", src.GetIdentifier(), key, err)
		}
	}
	l := env.Locals[op.name]
	if l == nil {
		return nil, fmt.Errorf("local source %.200q: the build has no such directory: %w", op.name, errdefs.ErrNotFound)
	}
	op.dir = l.Dir
	return op, nil
}

func (op *localOp) attr(key, value string) error {
	switch key {
	case pb.AttrIncludePatterns:
		return localPatterns(value, &op.filter.Include)
	case pb.AttrExcludePatterns:
		return localPatterns(value, &op.filter.Exclude)
	case pb.AttrFollowPaths:
		return localPatterns(value, &op.filter.Follow)
	case pb.AttrLocalSessionID:
		// "name:id" names one of several sessions' directories.
		if name, _, ok := strings.Cut(value, ":"); ok {
			op.name = name + "-" + op.name
		}
	case pb.AttrLocalUniqueID, pb.AttrSharedKeyHint, pb.AttrLocalDiffer:
		// Nothing is transferred, so there is nothing to share or to compare.
	case pb.AttrMetadataTransfer:
		if on, err := strconv.ParseBool(value); err != nil || on {
			return fmt.Errorf("value %.80q: directories without content are not supported: %w", value, errdefs.ErrNotImplemented)
		}
	case pb.AttrMetadataTransferExclude:
		// Exceptions from the above.
	default:
		return fmt.Errorf("not known: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func localPatterns(value string, to *[]string) error {
	if err := json.Unmarshal([]byte(value), to); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// CacheMap reads the directory: its content is what the source is pinned to.
func (op *localOp) CacheMap(ctx context.Context, sink progress.Sink) (*solver.CacheMap, error) {
	start := time.Now()
	status := progress.Status{
		ID: "transferring " + op.name + ":", Name: "transferring " + op.name + ":",
		Vertex: op.vertex, Timestamp: start, Started: &start,
	}
	sink.Event(progress.Event{Status: &status})
	t, err := openLocalTree(ctx, op.env, op.dir, op.filter)
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", op.name, op.dir, err)
	}
	op.tree = t
	done := status
	now := time.Now()
	done.Current, done.Timestamp, done.Completed = t.bytes(), now, &now
	sink.Event(progress.Event{Status: &done})
	return &solver.CacheMap{
		Digest:   digest.FromString("den.local.v1\x00" + string(t.Digest())),
		NoRecord: true,
	}, nil
}

// Exec returns the directory as CacheMap found it.
func (op *localOp) Exec(ctx context.Context, _ []solver.Result, sink progress.Sink) ([]solver.Result, error) {
	if op.tree == nil {
		if _, err := op.CacheMap(ctx, sink); err != nil {
			return nil, err
		}
	}
	return []solver.Result{op.env.newLocalRef(op.tree, op.vertex)}, nil
}
