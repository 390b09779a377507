package llb

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
)

// lacking are the capabilities of BuildKit's own list that den does not have.
// A frontend branches on some of them (mergeop, above all); the others only
// make a definition that needs one fail early.
var lacking = []apicaps.CapID{
	pb.CapBuildOpLLBFileName,
	pb.CapDiffOp,
	pb.CapExecMetaNetworkProxy,
	pb.CapPassthroughOp,
	pb.CapRemoteCacheAzBlob,
	pb.CapRemoteCacheGHA,
	pb.CapRemoteCacheS3,
	pb.CapSourceGitBundle,
	pb.CapSourceGitCheckoutBundle,
	pb.CapSourceGitSignatureVerify,
	pb.CapSourceHTTPSignatureVerify,
	pb.CapSourceImageBlob,
	pb.CapSourcePolicy,
	pb.CapSourcePolicySession,
	pb.CapAttestations,
}

// Caps returns what den announces to frontends, and accepts from them.
func Caps() apicaps.CapSet {
	all := pb.Caps.All()
	for _, c := range all {
		if slices.Contains(lacking, apicaps.CapID(c.ID)) {
			c.Enabled = false
		}
	}
	return pb.Caps.CapSet(all)
}

// capSet memoises checks: a definition repeats a few capabilities on each of
// its operations.
type capSet struct {
	set  apicaps.CapSet
	seen map[string]error
}

func newCapSet() capSet {
	return capSet{Caps(), map[string]error{}}
}

func (c capSet) check(id string) error {
	err, ok := c.seen[id]
	if !ok {
		if err = c.set.Supports(apicaps.CapID(id)); err != nil {
			err = fmt.Errorf("capability %.80q is needed, which den does not have: %w", id, errdefs.ErrNotImplemented)
		}
		c.seen[id] = err
	}
	return err
}
