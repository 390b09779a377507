package probe

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestLimitsAreTheLowestOfTheCgroupsAroundDen(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		want Limits
	}{
		{"nothing", fstest.MapFS{}, Limits{}},
		{"version 2, own namespace", fstest.MapFS{
			"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("2147483648\n"), "sys/fs/cgroup/memory.current": file("1000\n"),
			"sys/fs/cgroup/memory.stat": file("anon 7\nfile 800\ninactive_file 500\nactive_file 100\n"),
			"sys/fs/cgroup/pids.max":    file("512\n"), "sys/fs/cgroup/pids.current": file("7\n"),
		}, Limits{MemoryBytes: 2 << 30, MemoryUsedBytes: 1000, MemoryFixedBytes: 400, Pids: 512, PidsUsed: 7}},
		{"version 2, the machine's path over den's own tree", fstest.MapFS{
			"proc/self/cgroup": file("0::/kubepods/pod1/c\n"), "sys/fs/cgroup/memory.max": file("1048576\n"), "sys/fs/cgroup/pids.max": file("max\n"),
		}, Limits{MemoryBytes: 1 << 20}},
		{"version 2, a lower limit above", fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "sys/fs/cgroup/a/memory.max": file("4096\n"), "sys/fs/cgroup/a/memory.current": file("5\n"),
			"sys/fs/cgroup/a/b/memory.max": file("8192\n"), "sys/fs/cgroup/a/b/memory.current": file("6\n"),
		}, Limits{MemoryBytes: 4096, MemoryUsedBytes: 5, MemoryFixedBytes: 5}},
		{"version 1", fstest.MapFS{
			"proc/self/cgroup":                           file("5:pids:/docker/x\n4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n0::/system\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("536870912\n"), "sys/fs/cgroup/memory/memory.usage_in_bytes": file("9\n"),
			"sys/fs/cgroup/memory/memory.stat":     file("total_inactive_file 3\ntotal_active_file 99\n"),
			"sys/fs/cgroup/pids/docker/x/pids.max": file("100\n"), "sys/fs/cgroup/pids/docker/x/pids.current": file("3\n"),
		}, Limits{MemoryBytes: 512 << 20, MemoryUsedBytes: 9, Pids: 100, PidsUsed: 3}},
		{"version 1 without limits", fstest.MapFS{
			"proc/self/cgroup": file("3:memory:/\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n"),
		}, Limits{}},
		{"no /proc", fstest.MapFS{"sys/fs/cgroup/memory.max": file("77\n")}, Limits{MemoryBytes: 77}},
		{"hostile", fstest.MapFS{
			"proc/self/cgroup": file("x\n::\n0::/../../../etc\n3:memory:../..\n"), "sys/fs/cgroup/memory.max": file("-5\n"), "sys/fs/cgroup/pids.max": file("99999999999999999999\n"),
		}, Limits{}},
	} {
		if d := cmp.Diff(c.want, limitsBelow(c.fs)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func FuzzCgroupLines(f *testing.F) {
	f.Add("0::/a/b\n", "12")
	f.Fuzz(func(t *testing.T, lines, number string) {
		l := limitsBelow(fstest.MapFS{
			"proc/self/cgroup":         &fstest.MapFile{Data: []byte(lines)},
			"sys/fs/cgroup/memory.max": &fstest.MapFile{Data: []byte(number)},
		})
		if l.MemoryBytes < 0 || l.Pids != 0 {
			t.Errorf("%+v", l)
		}
	})
}

func TestDiskIsLookedAtWithoutATrace(t *testing.T) {
	dir := t.TempDir()
	d := LookAtDisk(filepath.Join(dir, "not", "there"))
	if d.Dir != dir || d.Err != nil || d.FSType == "" || d.SizeBytes <= 0 || d.FreeBytes <= 0 {
		t.Errorf("%+v", d)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestDiskThatCannotBeWrittenSaysSo(t *testing.T) {
	if d := LookAtDisk("/proc"); d.Err == nil {
		t.Errorf("%+v", d)
	}
}

func TestWeightsOfBlockDevicesAreFoundWhereverTheKernelShowsThem(t *testing.T) {
	for file, want := range map[string]bool{
		"sys/fs/cgroup/blkio/docker/blkio.bfq.weight":           true,
		"sys/fs/cgroup/blkio/blkio.weight":                      true,
		"sys/fs/cgroup/system.slice/io.weight":                  true,
		"sys/fs/cgroup/io.bfq.weight":                           true,
		"sys/fs/cgroup/blkio/docker/blkio.bfq.io_serviced":      false,
		"sys/fs/cgroup/blkio/docker/deeper/blkio.bfq.weight":    false,
		"sys/fs/cgroup/memory/docker/memory.limit_in_bytes":     false,
		"sys/fs/cgroup/system.slice/io.max":                     false,
		"sys/fs/cgroup/blkio/docker/blkio.throttle.io_serviced": false,
	} {
		if got := blockWeight(fstest.MapFS{file: {}}); got != want {
			t.Errorf("%s: %t", file, got)
		}
	}
}
