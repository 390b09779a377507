package ops

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/store"
)

// tmpfsEnv can run steps on a disk of its own, of size.
func tmpfsEnv(t *testing.T, size string) *Env {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return rootEnv(t, dir)
}

// cacheOf puts a record that keeps n bytes.
func cacheOf(t *testing.T, env *Env, n int64) oci.Digest {
	t.Helper()
	b, err := env.Store.PutBlob(context.Background(), io.LimitReader(strings.NewReader(strings.Repeat("c", int(n))), n))
	if err != nil {
		t.Fatal(err)
	}
	r := store.Record{Blobs: []oci.Digest{b.Digest()}}
	_, err = env.Store.PutRecord(context.Background(), digest.FromString("cache"), r, false)
	if err := errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Digest()
}

// runOp executes a RUN as a build does.
func runOp(env *Env, op *pb.ExecOp, base *Ref) ([]solver.Result, error) {
	v := &llb.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: op}}, Meta: &pb.OpMetadata{}, Inputs: make([]llb.Edge, 1), Name: "RUN"}
	o, err := NewResolver(env)(v)
	if err != nil {
		return nil, err
	}
	sink, _ := logs()
	return o.Exec(context.Background(), []solver.Result{base}, sink)
}

const mebi = 1 << 20

// needsRoot skips before a file system is mounted in vain.
func needsRoot(t *testing.T) {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Skip("needs root: to mount a tmpfs and run steps")
	}
}

func TestStepThatFillsTheDiskIsTriedAgainWithoutTheCache(t *testing.T) {
	needsRoot(t)
	env := tmpfsEnv(t, "48m")
	base := busybox(t, env)
	cache := cacheOf(t, env, 24*mebi)
	out, err := runOp(env, shell("busybox head -c 32000000 /dev/zero >/big", nil), base)
	if err != nil {
		t.Fatal(err)
	}
	if err := closeAll(out); err != nil {
		t.Error(err)
	}
	if _, err := env.Store.Blob(context.Background(), cache); !errdefs.IsNotFound(err) {
		t.Errorf("the cache is still there: %v", err)
	}
}

func TestStepThatNeverFitsSaysThatTheDiskIsFull(t *testing.T) {
	needsRoot(t)
	env := tmpfsEnv(t, "32m")
	base := busybox(t, env)
	_, err := runOp(env, shell("busybox head -c 64000000 /dev/zero >/big", nil), base)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "exit code: 1: the disk of the store is full") {
		t.Errorf("got %v", err)
	}
}

// With a cap the step is killed, in its upper and in a cache mount alike, and
// the error says what to do.
func TestStepOverTheCapIsKilledWithTheWayOut(t *testing.T) {
	needsRoot(t)
	mount := func(op *pb.ExecOp) {
		op.Mounts = append(op.Mounts, &pb.Mount{
			Input: -1, Dest: "/c", Output: -1, MountType: pb.MountType_CACHE,
			CacheOpt: &pb.CacheOpt{ID: "mine", Sharing: pb.CacheSharingOpt_SHARED},
		})
	}
	for name, op := range map[string]*pb.ExecOp{
		"upper":       shell("while :; do busybox head -c 1000000 /dev/zero >>/big; busybox usleep 10000; done", nil),
		"cache mount": shell("while :; do busybox head -c 1000000 /dev/zero >>/c/big; busybox usleep 10000; done", mount),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			rootEnv(t, root)
			env := rootEnv(t, root)
			st, err := store.Open(t.Context(), env.Store.Root(), store.Options{EngineDir: t.TempDir(), MaxBytes: 32 * mebi, Durability: "none"})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			env.Store = st
			begin := time.Now()
			_, err = runOp(env, op, busybox(t, env))
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "raise --max-size") {
				t.Errorf("after %s: %v", time.Since(begin), err)
			}
			u, err := st.Usage(t.Context())
			if err != nil || u.ReservedBytes != 0 || u.Drafts.Count != 0 {
				t.Errorf("left over: %+v, %v", u, err)
			}
		})
	}
}
