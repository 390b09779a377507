package store

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The kernel ends process 1 of a container, and with it the container, only when the syncer's system call has returned.
func TestProcess1StartsNoSyncer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flags uintptr
		want  bool
	}{
		"a process among others": {0, true},
		"process 1":              {syscall.CLONE_NEWPID, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := filepath.Join(t.TempDir(), "store")
			cmd := child(t, "publish", root, "")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.flags}
			if uid := os.Getuid(); c.flags != 0 && uid != 0 {
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
			}
			if err := cmd.Run(); errors.Is(err, syscall.EPERM) {
				t.Skip("this kernel lets nobody make a namespace of process ids: ", err)
			} else if err != nil {
				t.Fatal(err, stderr(cmd))
			}
			queued, err := filepath.Glob(filepath.Join(root, "sync/*/queued"))
			if err != nil || len(queued) > 0 != c.want {
				t.Errorf("a syncer was started: %v, want %v, %v", len(queued) > 0, c.want, err)
			}
			s := openStore(t, root, filepath.Join(filepath.Dir(root), "engine"))
			if err := s.log.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
}
