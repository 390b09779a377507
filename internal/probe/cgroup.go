package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// LeafCgroup is the name of the cgroup where the outer container's processes go when den has to
// make room for limits in theirs: one of version 2 with processes of its own cannot have
// children with controllers (cgroups(7), "no internal processes"). The entry script of the
// docker:dind image does the same.
const LeafCgroup = "den-outer"

// initialPidns is the pid namespace that the kernel starts with, PROC_PID_INIT_INO of
// include/linux/proc_ns.h.
const initialPidns = "pid:[4026531836]"

// A Cgroup2 is the cgroup of version 2 around den, in which den may make others.
type Cgroup2 struct {
	// Dir is its directory, Path its name in the cgroup namespace that den sees.
	Dir, Path string
	// Whole says that all of its processes may be moved to LeafCgroup, because the cgroup is the
	// outer container's alone, or was delegated to it.
	Whole bool
}

// OwnCgroup2 finds the cgroup around den. The error says why none can be made in it.
func OwnCgroup2() (Cgroup2, error) { return ownCgroup2("/") }

// ownCgroup2 is OwnCgroup2 with another root directory.
func ownCgroup2(root string) (Cgroup2, error) {
	b, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return Cgroup2{}, err
	}
	c := Cgroup2{Path: "/"}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && p != "" {
			c.Path = p
		}
	}
	if c.Path = strings.TrimSuffix(c.Path, "/"+LeafCgroup); c.Path == "" {
		c.Path = "/"
	}
	c.Dir = filepath.Join(root, cgroupRoot, c.Path)
	if foreignMount(root) {
		return c, fmt.Errorf("%s shows cgroups above the outer container's: leave out its bind mount (-v %s), or take the machine's cgroup namespace too (--cgroupns=host)", cgroupRoot, cgroupRoot)
	}
	// The path is not there if the mount begins at another cgroup.
	if _, err := os.Stat(c.Dir); errors.Is(err, fs.ErrNotExist) || slices.Contains(strings.Split(c.Path, "/"), "..") {
		return c, fmt.Errorf("cgroup %s is not below %s", c.Path, cgroupRoot)
	}
	if err := unix.Access(c.Dir, unix.W_OK); err != nil {
		return c, fmt.Errorf("%s: %w", c.Dir, err)
	}
	if c.Whole = c.Path == "/" || delegated(c.Dir) || ownPids(root); !c.Whole && c.Inhabited() {
		return c, fmt.Errorf("cgroup %s has processes of its own, which are not den's to move: start den in a cgroup that is delegated to it (systemd-run --scope -p Delegate=yes), "+
			"or in a container with a cgroup namespace (docker run --cgroupns=private)", c.Path)
	}
	return c, nil
}

// foreignMount reports whether what is mounted at cgroupRoot begins above the root of den's cgroup namespace. Its paths
// are then those of other cgroups, which den could even make others in (cgroup_namespaces(7)).
func foreignMount(root string) bool {
	b, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return false
	}
	foreign := false
	for line := range strings.Lines(string(b)) {
		// ID PARENT MAJOR:MINOR ROOT MOUNTPOINT ... (proc(5)); the last one there is what is seen.
		if f := strings.Fields(line); len(f) > 4 && f[4] == cgroupRoot {
			foreign = strings.HasPrefix(f[3], "/..")
		}
	}
	return foreign
}

// delegated reports whether systemd left what is below dir to others (Delegate=yes, systemd 251 marks it for all to see).
func delegated(dir string) bool {
	var value [2]byte
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Lgetxattr(dir, name, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// ownPids reports whether den is in a pid namespace that a container runtime made: what is in the
// same cgroup, and in this namespace, is of the same container.
func ownPids(root string) bool {
	link, err := os.Readlink(filepath.Join(root, "proc/self/ns/pid"))
	return err == nil && link != initialPidns
}

// Inhabited reports whether there are processes in the cgroup itself which forbid that it has others with
// controllers: the machine's root cgroup may have both.
func (c Cgroup2) Inhabited() bool {
	if _, err := os.Stat(filepath.Join(c.Dir, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return false // the one cgroup without the file
	}
	b, err := os.ReadFile(filepath.Join(c.Dir, "cgroup.procs"))
	return err == nil && len(b) > 0
}

// cgroups finds the version in use and whether limits can be set.
func cgroups() (version int, why string) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return 0, fmt.Sprintf("%s: %v", cgroupRoot, err)
	}
	if uint32(st.Type) == unix.CGROUP2_SUPER_MAGIC {
		if _, err := OwnCgroup2(); err != nil {
			return 2, err.Error()
		}
		return 2, ""
	}
	dir := filepath.Join(cgroupRoot, "memory")
	if err := unix.Statfs(dir, &st); err != nil || uint32(st.Type) != unix.CGROUP_SUPER_MAGIC {
		return 0, "no cgroup file system at " + cgroupRoot
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return 1, fmt.Sprintf("%s: %v", dir, err)
	}
	return 1, ""
}

// blockWeight looks for the files of a weight, which the root of all cgroups has not: in the
// mount's root, which may be a container's, and in those below.
func blockWeight(root fs.FS) bool {
	for _, file := range []string{"blkio/blkio.weight", "blkio/blkio.bfq.weight", "io.weight", "io.bfq.weight"} {
		dir, name := path.Split(file)
		for _, below := range []string{"", "*"} {
			if found, err := fs.Glob(root, path.Join("sys/fs/cgroup", dir, below, name)); err == nil && len(found) > 0 {
				return true
			}
		}
	}
	return false
}
