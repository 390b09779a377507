package ops

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/oci"
)

// plainRun is what RUN true becomes.
func plainRun(change func(*pb.ExecOp)) *pb.ExecOp {
	op := &pb.ExecOp{
		Meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"PATH=/bin"}, Cwd: "/"},
		Mounts: []*pb.Mount{{Dest: "/", Output: 0}},
	}
	if change != nil {
		change(op)
	}
	return op
}

func cacheMountOf(id string, sharing pb.CacheSharingOpt) *pb.Mount {
	return &pb.Mount{
		Input: -1, Dest: "/c", Output: -1, MountType: pb.MountType_CACHE,
		CacheOpt: &pb.CacheOpt{ID: id, Sharing: sharing},
	}
}

// The digests are those that BuildKit v0.33.1 makes of the same operations
// (solver/llbsolver/ops, ExecOp.CacheMap). When one changes, every cache is lost.
func TestExecKeysAreBuildKits(t *testing.T) {
	amd64, arm := oci.Platform{OS: "linux", Architecture: "amd64"}, oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	for _, tt := range []struct {
		name       string
		op         *pb.ExecOp
		amd64, arm oci.Digest
	}{
		{
			"plain", plainRun(nil),
			"sha256:4b61c12f37c234b202c8a5e09a0f545b0f81e328466f0aa3a5d9c6639fddb439",
			"sha256:5feadb1cbbb232188176bd51bf0f80215feb97c3d1007935f8a324e73201bdfc",
		},
		{
			"proxies stay out, addresses of hosts too",
			plainRun(func(op *pb.ExecOp) {
				op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "http://p"}
				op.Meta.ExtraHosts = []*pb.HostIP{{Host: "h", IP: "1.2.3.4"}}
			}),
			"sha256:a013199e83c98b6849cbbfe9ca76e14bc668549c671333a0970e50693796810e",
			"sha256:4a33cc0d4ac2f27c85d5ced20f2e88c5cceb17e278368c249f5fb8326e88e5a9",
		},
		{
			"selectors stay out",
			plainRun(func(op *pb.ExecOp) {
				op.Mounts = append(op.Mounts, &pb.Mount{Input: 1, Selector: "/sub", Dest: "/in", Output: -1, Readonly: true})
			}),
			"sha256:c9ce3721b2b5f36299ef29a2ff40f06c2d77ba1b9bfffd17a75b507ad607f772",
			"sha256:4ae739b0a72446a1627417b869873e677e60fe675ff139570f49bdf15fe0f483",
		},
		{
			"a cache mount's default id counts",
			plainRun(func(op *pb.ExecOp) {
				op.Mounts = append(op.Mounts, cacheMountOf("ns//c", pb.CacheSharingOpt_SHARED))
			}),
			"sha256:141d50decf1f7996a0baf8e404e6aff73a74e53aeb16fa5d10e65e258d17023d",
			"sha256:7c2783788b793cde836377bd1a5d3d5bc552e35a1042e0cf275c3cb6361e85b9",
		},
		{
			"a cache mount's own id does not",
			plainRun(func(op *pb.ExecOp) {
				op.Mounts = append(op.Mounts, cacheMountOf("mine", pb.CacheSharingOpt_LOCKED))
			}),
			"sha256:779e1f32091833e5e80183095337ecdc987315c3aae73c688d250724315bc99c",
			"sha256:5a6f3eacc79cf1bc0e8c350fe1eac51b3595a9f6708998efbcc9030a35c54260",
		},
		{
			"the rest",
			plainRun(func(op *pb.ExecOp) {
				op.Mounts = append(op.Mounts,
					&pb.Mount{Input: -1, Dest: "/run/secrets/s", Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s", Mode: 0o400}},
					&pb.Mount{Input: -1, Dest: "/tmp", Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: 1 << 20}},
					&pb.Mount{Input: -1, Dest: "/ssh", Output: -1, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: "default", Mode: 0o600}})
				op.Network = pb.NetMode_NONE
				op.Secretenv = []*pb.SecretEnv{{ID: "s", Name: "S"}}
				op.Meta.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}
			}),
			"sha256:79832a996fab2cd35eb0cd20595cab04a1cb2ab2d0137c865bca240c108f687b",
			"sha256:374f24daeae49b4364df9c218c1487dbfc6f5fc4d794322e09e6c924ddf4a553",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []struct {
				oci.Platform
				want oci.Digest
			}{{amd64, tt.amd64}, {arm, tt.arm}} {
				got, err := execKey(tt.op, p.Platform)
				if err != nil || got != p.want {
					t.Errorf("%s: key %s, %v; want %s", p.Architecture, got, err, p.want)
				}
			}
		})
	}
}

func TestExecKeyLeavesTheOperationAlone(t *testing.T) {
	op := plainRun(func(op *pb.ExecOp) {
		op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "http://p"}
		op.Mounts = append(op.Mounts, &pb.Mount{Input: 1, Selector: "/sub", Dest: "/in", Output: -1})
	})
	if _, err := execKey(op, oci.Platform{}); err != nil {
		t.Fatal(err)
	}
	if op.Meta.ProxyEnv == nil || op.Mounts[1].Selector != "/sub" {
		t.Error("making the key changed the operation")
	}
}

func TestOnlyHarmlessMountsCountByContent(t *testing.T) {
	bind := func(m *pb.Mount) *pb.ExecOp {
		return plainRun(func(op *pb.ExecOp) { m.Input, m.Dest = 1, "/in"; op.Mounts = append(op.Mounts, m) })
	}
	for _, tt := range []struct {
		name    string
		op      *pb.ExecOp
		content bool
	}{
		{"read-only", bind(&pb.Mount{Output: -1, Readonly: true, Selector: "sub"}), true},
		{"thrown away", bind(&pb.Mount{Output: -1, Selector: "sub"}), true},
		{"whole and kept", bind(&pb.Mount{Output: 1}), true},
		{"part and kept", bind(&pb.Mount{Output: 1, Selector: "sub"}), false},
		{"switched off", bind(&pb.Mount{Output: -1, ContentCache: pb.MountContentCache_OFF}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uses, err := inputUses(tt.op, 2)
			if err != nil {
				t.Fatal(err)
			}
			if uses[0].byContent {
				t.Error("the root counts by content")
			}
			if uses[1].byContent != tt.content {
				t.Errorf("by content: %v", uses[1].byContent)
			}
		})
	}
}

// What is mounted where must show in the digests, since the key has neither
// the selectors nor which of them belongs to which target.
func TestSelectedPathsKeepTheirPlaces(t *testing.T) {
	for _, paths := range [][]string{{"/x", "/y"}, {"/y", "/x"}, {"/", "/x"}, {"/x", "/x/y"}} {
		want := []Selector{{Path: paths[0], FollowLinks: true}, {Path: paths[1], FollowLinks: true}}
		if diff := cmp.Diff(want, inputUse{paths: paths}.selectors()); diff != "" {
			t.Errorf("%q: %s", paths, diff)
		}
	}
	if got := (inputUse{paths: []string{"/"}}).selectors(); got != nil {
		t.Errorf("the whole input: got %v", got)
	}
}
