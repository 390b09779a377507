package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"den/internal/durable"
	"den/internal/oci"
)

// afterReboot opens root as the first process of the next kernel.
func afterReboot(t *testing.T, root, engine string) (s *Store, told *[]string) {
	t.Helper()
	boots, err := readNames(filepath.Join(root, "sync"))
	must(t, err)
	for _, b := range boots {
		must(t, os.Rename(filepath.Join(root, "sync", b), filepath.Join(root, "sync", "00000000-dead-"+b[:8])))
	}
	told = new([]string)
	s, err = Open(t.Context(), root, Options{EngineDir: engine, Durability: durable.Epoch, Notice: func(line string) { *told = append(*told, line) }})
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(s.log.Sync(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s, told
}

func TestNameOfAnImageWhoseOnlyLayerACrashTookGoesToo(t *testing.T) {
	root, engine := filepath.Join(t.TempDir(), "store"), t.TempDir()
	s, err := Open(t.Context(), root, Options{EngineDir: engine, Durability: durable.Epoch})
	must(t, err)
	kept := putLayer(t, s, "before")
	must(t, s.SetRef(t.Context(), Ref{Name: "old", Record: Record{Layers: []oci.Digest{kept}}}))
	must(t, s.log.Sync()) // what came before is on disk
	lost, blob := putLayer(t, s, "just now"), putBlob(t, s, "its blob")
	must(t, s.SetRef(t.Context(), Ref{Name: "built", Record: Record{Layers: []oci.Digest{kept, lost}}}))
	must(t, s.SetRef(t.Context(), Ref{Name: "exported", Record: Record{Layers: []oci.Digest{lost}, Blobs: []oci.Digest{blob}}}))
	must(t, s.release()) // the machine goes down

	s, told := afterReboot(t, root, engine)
	_, err = s.Ref(t.Context(), "built")
	mustBeGone(t, err)
	for _, name := range []string{"old", "exported"} {
		if _, err := s.Ref(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all := strings.Join(*told, "\n"); !strings.Contains(all, "image built was built just before a crash; its layer "+string(lost)) {
		t.Errorf("told:\n%s", all)
	}
}

func TestLongestContainerNameCanBeUsed(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store"), Options{EngineDir: t.TempDir(), Durability: durable.Epoch})
	must(t, err)
	defer func() { must(t, errors.Join(s.log.Sync(), s.Close())) }()
	for n, fits := range map[int]bool{100: true, 220: true, 255: true, 256: false} {
		name, cid := strings.Repeat("n", n), hexSum(fmt.Sprint(n))
		c, err := s.NewContainer(t.Context(), cid)
		must(t, err)
		if err := s.NameContainer(t.Context(), name, cid); (err == nil) != fits {
			t.Errorf("%d characters: %v", n, err)
		}
		must(t, c.Close())
	}
}
