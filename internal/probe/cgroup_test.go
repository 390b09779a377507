package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where den may make cgroups, and whose processes it may move for that.
func TestOwnCgroupOfVersion2(t *testing.T) {
	t.Parallel()
	const host, container = initialPidns, "pid:[4026532177]"
	for _, c := range []struct {
		name, own, pidns, procs string
		dir                     string // of the tree that is there; "" is the root only
		want                    Cgroup2
		err                     string
	}{
		{"a container with a cgroup namespace", "0::/\n", container, "1\n", "", Cgroup2{Dir: "/", Path: "/", Whole: true}, ""},
		{"after its processes were moved", "0::/den-outer\n", container, "", "/den-outer", Cgroup2{Dir: "/", Path: "/", Whole: true}, ""},
		{"a container in the host's cgroup namespace", "0::/docker/ab\n", container, "1\n", "/docker/ab", Cgroup2{Dir: "/docker/ab", Path: "/docker/ab", Whole: true}, ""},
		{"the same, later", "0::/docker/ab/den-outer\n", container, "", "/docker/ab/den-outer", Cgroup2{Dir: "/docker/ab", Path: "/docker/ab", Whole: true}, ""},
		{"a login on the machine", "0::/user.slice/session-1.scope\n", host, "100\n200\n", "/user.slice/session-1.scope", Cgroup2{}, "Delegate=yes"},
		{"an empty cgroup on the machine", "0::/mine/den-outer\n", host, "", "/mine/den-outer", Cgroup2{Dir: "/mine", Path: "/mine"}, ""},
		{"a tree mounted from elsewhere", "0::/docker/ab\n", container, "1\n", "", Cgroup2{}, "cgroup /docker/ab is not below /sys/fs/cgroup"},
		{"a cgroup beside the namespace's", "0::/../other\n", container, "1\n", "", Cgroup2{}, "cgroup /../other is not below"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			tree := filepath.Join(root, cgroupRoot)
			must(t, os.MkdirAll(filepath.Join(tree, c.dir), 0o755))
			must(t, os.MkdirAll(filepath.Join(root, "proc/self/ns"), 0o755))
			must(t, os.WriteFile(filepath.Join(root, "proc/self/cgroup"), []byte(c.own), 0o644))
			must(t, os.Symlink(c.pidns, filepath.Join(root, "proc/self/ns/pid")))
			dir := filepath.Join(tree, strings.TrimSuffix(c.dir, "/"+LeafCgroup))
			must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(c.procs), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "cgroup.type"), []byte("domain\n"), 0o644))
			got, err := ownCgroup2(root)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%+v, %v; want an error with %q", got, err, c.err)
				}
				return
			}
			c.want.Dir = filepath.Join(tree, c.want.Dir)
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

// The machine's root cgroup may have processes and children with controllers.
func TestTheRootCgroupNeedsNoRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("1\n"), 0o644))
	if (Cgroup2{Dir: dir}).Inhabited() {
		t.Error("it has processes in the way")
	}
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.type"), []byte("domain\n"), 0o644))
	if !(Cgroup2{Dir: dir}).Inhabited() {
		t.Error("a cgroup that is not the machine's root has none in the way")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// docker run -v /sys/fs/cgroup:/sys/fs/cgroup:rw in a cgroup namespace: the paths are the machine's.
func TestTheMachinesCgroupsAreNotTakenForDensOwn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		root    string
		foreign bool
	}{{"/", false}, {"/../..", true}, {"/..", true}} {
		root := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(root, cgroupRoot), 0o755))
		must(t, os.MkdirAll(filepath.Join(root, "proc/self"), 0o755))
		must(t, os.WriteFile(filepath.Join(root, "proc/self/cgroup"), []byte("0::/\n"), 0o644))
		must(t, os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), []byte("59 58 0:26 / /sys ro - sysfs sysfs ro\n"+
			"60 59 0:27 "+c.root+" /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"), 0o644))
		if _, err := ownCgroup2(root); (err != nil) != c.foreign || c.foreign && !strings.Contains(err.Error(), "above the outer container's") {
			t.Errorf("a mount of %s: %v", c.root, err)
		}
	}
}
