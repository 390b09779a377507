package engine

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/image"
	"den/internal/store"
)

// A container that cannot get its layers is an error, and is not there.
func TestContainerOfAnImageWhoseLayersAreGone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Durability: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	images := image.New(st, nil, image.Options{})
	var b bytes.Buffer
	if err := tar.NewWriter(&b).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Import(t.Context(), &b, image.ImportOptions{Name: "empty:latest"}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "layers", st.Class())); err != nil {
		t.Fatal(err)
	}
	e := New(Options{Store: st, Images: images})
	if _, err := e.Run(t.Context(), RunRequest{Image: "empty:latest", Args: []string{"true"}, Pull: "never"}, Streams{}); !errdefs.IsNotFound(err) {
		t.Errorf("error is %v", err)
	}
	ids, err := st.Containers()
	if err != nil || len(ids) > 0 {
		t.Errorf("containers are %q, %v", ids, err)
	}
}

func TestMissingContainersAreNotTakenForAMissingImage(t *testing.T) {
	r := newRig(t)
	for _, req := range []CreateRequest{{VolumesFrom: []string{"missing:ro"}}, {NetworkMode: "container:missing"}} {
		req.Image = "box"
		_, err := r.Create(t.Context(), &req)
		if !errdefs.IsInvalidArgument(err) || err.Error() != "No such container: missing" {
			t.Errorf("%v", err)
		}
	}
	if names := r.names(); len(names) > 0 {
		t.Errorf("left are %v", names)
	}
}

func TestLongHostnamesAreRefused(t *testing.T) {
	r := newRig(t)
	r.create(CreateRequest{RunRequest: RunRequest{Hostname: strings.Repeat("h", 64)}})
	_, err := r.Create(t.Context(), &CreateRequest{RunRequest: RunRequest{Image: "box", Hostname: strings.Repeat("h", 65)}})
	if !errdefs.IsInvalidArgument(err) || !strings.HasSuffix(err.Error(), "is too long (maximum 64 bytes)") {
		t.Errorf("%v", err)
	}
}

func TestPathsAndCgroupsOfACreateRequestReachTheSandbox(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{CgroupParent: "../team", HostCgroups: true, Masked: []string{"/proc/keys"}, ReadOnlyPaths: []string{}})
	r.start(id)
	l := r.exec.last(t).Spec.Linux
	if l.CgroupsPath != "/team/den-"+id || len(l.MaskedPaths) != 1 || len(l.ReadonlyPaths) != 0 {
		t.Errorf("%q %q %q", l.CgroupsPath, l.MaskedPaths, l.ReadonlyPaths)
	}
	if slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }) {
		t.Error("it has a cgroup namespace of its own")
	}
	if err := r.Kill(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
}

func TestReservationsAndWeightsAreOfTheSpecification(t *testing.T) {
	r := newRig(t)
	q := r.mustRun(RunRequest{Limits: Limits{MemoryReservationBytes: 8 << 20, BlkioWeight: 100, CpusetMems: "0"}})
	got := q.Spec.Linux.Resources
	if got == nil || got.Memory == nil || got.Memory.Reservation == nil || *got.Memory.Reservation != 8<<20 || got.Memory.Limit != nil ||
		got.BlockIO == nil || *got.BlockIO.Weight != 100 || got.CPU == nil || got.CPU.Mems != "0" {
		t.Errorf("%+v", got)
	}
	for _, wrong := range []Limits{{MemoryReservationBytes: 1 << 20}, {MemoryBytes: 8 << 20, MemoryReservationBytes: 9 << 20}, {BlkioWeight: 5}, {BlkioWeight: 1001}, {CpusetMems: "a"}} {
		if _, err := r.run(RunRequest{Limits: wrong}, Streams{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
}
