package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/probe"
)

// fakeCgroup is a directory with the files that make room for limits; what is written to
// cgroup.subtree_control goes to the pipe that is returned.
func fakeCgroup(t *testing.T, files map[string]string) (probe.Cgroup2, *os.File) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "cgroup.subtree_control")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	control, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	return probe.Cgroup2{Dir: dir, Path: "/box", Whole: true}, control
}

// written is what was written to the pipe until now.
func written(t *testing.T, control *os.File) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Read(int(control.Fd()), b)
	if errors.Is(err, unix.EAGAIN) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// The kernel would enable pids alone beside processes, and never memory again.
func TestALimitOfProcessesIsNeverEnabledWithoutOneThatProcessesForbid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ available, first string }{
		{"cpuset cpu io memory pids", "+pids +memory"},
		{"cpu io pids", "+pids +io"},
		{"cpu pids", "+pids"}, // in an empty cgroup
	} {
		own, control := fakeCgroup(t, map[string]string{"cgroup.controllers": c.available + "\n", "cgroup.type": "domain\n", "cgroup.procs": ""})
		if err := enable(own, []string{"pids"}); err != nil {
			t.Error(err)
		}
		if got := written(t, control); !strings.HasPrefix(got, c.first+"+pids") {
			t.Errorf("of %q it enables %q, want %q first", c.available, got, c.first)
		}
	}
}

func TestThreadedControllersAloneAreNotEnabledBesideProcesses(t *testing.T) {
	t.Parallel()
	own, control := fakeCgroup(t, map[string]string{"cgroup.controllers": "cpu pids\n", "cgroup.type": "domain\n", "cgroup.procs": "0\n"})
	err := enable(own, []string{"cpu"})
	if err == nil || !strings.Contains(err.Error(), "--cgroupns=private") {
		t.Errorf("error %v", err)
	}
	if got := written(t, control); got != "" {
		t.Errorf("it wrote %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(own.Dir, probe.LeafCgroup, "cgroup.procs")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process 0, which is of another pid namespace, was moved: %q, %v", b, err)
	}
}

func TestAControllerThatWasNotDelegatedIsNamed(t *testing.T) {
	t.Parallel()
	own, control := fakeCgroup(t, map[string]string{"cgroup.controllers": "cpu pids\n", "cgroup.type": "domain\n", "cgroup.procs": ""})
	if err := enable(own, []string{"pids", "memory"}); err == nil || !strings.Contains(err.Error(), "cgroup /box has no controller memory") {
		t.Errorf("error %v", err)
	}
	if got := written(t, control); got != "" {
		t.Errorf("it wrote %q", got)
	}
}

// A path with parents is made below den's own cgroup, and nothing above is written to.
func TestACgroupIsMadeBelowDensOwn(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	own := filepath.Join(top, "box")
	for _, dir := range []string{top, own} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("as it was"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	parent := filepath.Join(own, "ci")
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"cgroup.controllers": "memory", "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(parent, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u := &unified{dir: filepath.Join(parent, "den-1"), name: "ci/den-1"}
	if err := u.Apply(-1); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(u.dir); err != nil || !st.IsDir() {
		t.Errorf("no cgroup: %v", err)
	}
	for file, want := range map[string]string{
		filepath.Join(top, "cgroup.subtree_control"):    "as it was",
		filepath.Join(own, "cgroup.subtree_control"):    "as it was",
		filepath.Join(parent, "cgroup.subtree_control"): "+memory",
	} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", file, b, err, want)
		}
	}
}
