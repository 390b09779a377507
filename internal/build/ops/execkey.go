package ops

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"den/internal/oci"
)

// execKey is the digest of all that a RUN does, by BuildKit's recipe
// (solver/llbsolver/ops/exec.go): the operation as JSON, without what differs
// between machines and runs. A change of this recipe changes every cache key.
func execKey(op *pb.ExecOp, p oci.Platform) (oci.Digest, error) {
	op = proto.Clone(op).(*pb.ExecOp)
	for _, h := range op.Meta.ExtraHosts {
		h.IP = ""
	}
	for _, m := range op.Mounts {
		m.Selector = ""
		if hidesCacheID(m) {
			m.CacheOpt.ID = ""
			m.CacheOpt.Sharing = 0
		}
	}
	op.Meta.ProxyEnv = nil
	if onlyRoot(op.Mounts) {
		op.Mounts = nil
	}
	return jsonDigest(struct {
		Type       string
		Exec       *pb.ExecOp
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", op, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
}

// jsonDigest is the digest of v's JSON, as BuildKit's cache keys are made.
func jsonDigest(v any) (oci.Digest, error) {
	dt, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("cache key: %w", err)
	}
	return digest.FromBytes(dt), nil
}

// hidesCacheID says whether the id of a cache mount stays out of the key. The
// id that a Dockerfile gives by default, its target with or without the
// frontend's cache namespace, is part of it; that is BuildKit's quirk.
func hidesCacheID(m *pb.Mount) bool {
	if m.CacheOpt == nil {
		return false
	}
	if m.CacheOpt.Sharing != pb.CacheSharingOpt_SHARED {
		return true
	}
	_, unprefixed, ok := strings.Cut(m.CacheOpt.ID, "/")
	return m.CacheOpt.ID != m.Dest && (!ok || unprefixed != m.Dest)
}

// onlyRoot recognises the mounts of a plain RUN, which early versions of
// BuildKit left out of the key.
func onlyRoot(mounts []*pb.Mount) bool {
	if len(mounts) != 1 {
		return false
	}
	m := mounts[0]
	return m.Dest == pb.RootMount && m.Selector == "" && !m.Readonly && m.MountType == pb.MountType_BIND &&
		m.CacheOpt == nil && m.SSHOpt == nil && m.SecretOpt == nil && m.ResultID == ""
}

// An inputUse says how the mounts of a command use one of its inputs.
type inputUse struct {
	// paths are the sub-directories that are mounted, in the mounts' order.
	paths []string
	// byContent: what the paths hold counts, not what the input is.
	byContent bool
}

// inputUses is parallel to the operation's inputs.
func inputUses(op *pb.ExecOp, inputs int) ([]inputUse, error) {
	uses := make([]inputUse, inputs)
	for _, m := range op.Mounts {
		switch m.MountType {
		case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
			continue
		}
		if m.Input == int64(pb.Empty) {
			continue
		}
		if m.Input < 0 || m.Input >= int64(inputs) {
			return nil, fmt.Errorf("mount %s: input %d of %d: %w", m.Dest, m.Input, inputs, errdefs.ErrInvalidArgument)
		}
		sel := path.Join("/", m.Selector)
		u := &uses[m.Input]
		u.paths = append(u.paths, sel)
		// Content may stand for the input only where nothing outside the
		// selected part can reach a result: a mount without output, one that
		// cannot be written, or one that is the whole input.
		safe := m.Output == int64(pb.SkipOutput) || m.Readonly || sel == pb.RootMount
		switch m.ContentCache {
		case pb.MountContentCache_OFF:
			u.byContent = false
		case pb.MountContentCache_ON:
			if !safe {
				return nil, fmt.Errorf("mount %s: its output cannot be cached by content: %w", m.Dest, errdefs.ErrInvalidArgument)
			}
			u.byContent = true
		default:
			// The root is never digested: it is large, and its layers name it.
			u.byContent = safe && m.Dest != pb.RootMount
		}
	}
	return uses, nil
}

// selectorKey names the mounted paths of an input.
func (u inputUse) selectorKey() string {
	if len(u.paths) == 0 {
		return ""
	}
	return string(digest.FromString(strings.Join(u.paths, "\x00")))
}

// selectors are the paths to digest, none for the whole input. All of several
// are there, in the order of the mounts: the key does not say which of them
// goes to which target, so that the digests must.
func (u inputUse) selectors() []Selector {
	if len(u.paths) == 1 && u.paths[0] == pb.RootMount {
		return nil
	}
	out := make([]Selector, len(u.paths))
	for i, p := range u.paths {
		out[i] = Selector{Path: p, FollowLinks: true}
	}
	return out
}

// platformOf is the platform that an operation is for; nil is the builder's.
func (e *Env) platformOf(p *pb.Platform) oci.Platform {
	if p == nil {
		if e.Platform.OS != "" {
			return e.Platform
		}
		return platforms.DefaultSpec()
	}
	return oci.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
		OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
	}
}
