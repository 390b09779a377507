package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// hostile DIR... tries to get out of its container, as its root or whoever it is,
// and prints what worked. The directories are writable ones of several file systems.
func hostile(dirs []string) error {
	runtime.LockOSThread() // ptrace and chroot
	for _, attack := range []func(dirs []string, got func(string, ...any)){
		foreignProcesses, kernelCalls, deviceNodes, kernelFiles, fileHandles, mounts, oldRoot,
	} {
		attack(dirs, func(format string, a ...any) { fmt.Printf(format+"\n", a...) })
	}
	return nil
}

// nr is a system call that package syscall does not know.
func nr(amd64, arm64 uintptr) uintptr {
	if runtime.GOARCH == "arm64" {
		return arm64
	}
	return amd64
}

// works makes a system call and reports whether it was allowed: an argument that makes
// no sense is looked at after the rights.
func works(call uintptr, a ...uintptr) bool {
	var args [6]uintptr
	copy(args[:], a)
	_, _, errno := syscall.Syscall6(call, args[0], args[1], args[2], args[3], args[4], args[5])
	switch errno {
	case syscall.EPERM, syscall.EACCES, syscall.ENOSYS, syscall.ESRCH:
		return false
	}
	return true
}

func pointer(s string) uintptr {
	b, _ := syscall.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(b))
}

// foreignProcesses are those in another mount namespace, or of one that cannot be told:
// den, its holders, other steps, and what else runs around them.
func foreignProcesses(_ []string, got func(string, ...any)) {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	for pid := 1; pid < 4096; pid++ {
		proc := "/proc/" + strconv.Itoa(pid)
		if err := syscall.Kill(pid, 0); err == syscall.ESRCH {
			continue
		}
		if ns, _ := os.Readlink(proc + "/ns/mnt"); ns == own {
			continue
		}
		for _, name := range []string{"environ", "mem", "maps", "auxv", "stack", "syscall", "io", "personality"} {
			f, err := os.Open(filepath.Join(proc, name))
			if err != nil {
				continue
			}
			if n, err := f.ReadAt(make([]byte, 1), 0); n > 0 || name == "mem" && err != nil && !os.IsPermission(err) {
				got("%s of process %d can be read", name, pid)
			}
			f.Close()
		}
		for _, name := range []string{"root", "cwd", "exe", "ns/user", "ns/mnt"} {
			if _, err := os.Stat(filepath.Join(proc, name)); err == nil {
				got("%s of process %d can be opened", name, pid)
			}
		}
		list, _ := os.ReadDir(proc + "/fd") // the numbers are no secret
		for _, e := range list {
			if target, err := os.Readlink(filepath.Join(proc, "fd", e.Name())); err == nil {
				got("descriptor %s of process %d is %s", e.Name(), pid, target)
			}
		}
		p := uintptr(pid)
		if fd, _, errno := syscall.Syscall(nr(434, 434), p, 0, 0); errno == 0 {
			for n := range uintptr(16) {
				if _, _, errno := syscall.Syscall(nr(438, 438), fd, n, 0); errno == 0 {
					got("descriptor %d of process %d can be taken", n, pid)
				}
			}
			if works(nr(308, 268), fd, syscall.CLONE_NEWNS|syscall.CLONE_NEWUTS) {
				got("namespaces of process %d can be joined", pid)
			}
		}
		if works(syscall.SYS_PTRACE, 0x4206, p, 0, 0) { // PTRACE_SEIZE: nothing stops
			got("process %d can be traced", pid)
		}
		var word uint64
		local := [2]uintptr{uintptr(unsafe.Pointer(&word)), 8}
		remote := [2]uintptr{0x10000, 8} // EFAULT comes after the rights
		if works(nr(310, 270), p, uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1) {
			got("memory of process %d can be read", pid)
		}
	}
}

// kernelCalls need a capability or a seccomp profile that lets them through.
func kernelCalls(_ []string, got func(string, ...any)) {
	empty := pointer("")
	for name, a := range map[string][]uintptr{
		"unshare user":     {syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER},
		"unshare mounts":   {syscall.SYS_UNSHARE, syscall.CLONE_NEWNS},
		"unshare cgroups":  {syscall.SYS_UNSHARE, 0x02000000},
		"clone3":           {nr(435, 435), 0, 0},
		"pivot_root":       {syscall.SYS_PIVOT_ROOT, empty, empty},
		"umount":           {nr(166, 39), pointer("/proc/sys"), 2},
		"open_tree":        {nr(428, 428), ^uintptr(99), pointer("/"), 1},
		"fsopen":           {nr(430, 430), pointer("tmpfs"), 0},
		"mount_setattr":    {nr(442, 442), ^uintptr(99), pointer("/"), 0, 0, 0},
		"bpf":              {nr(321, 280), 0, 0, 0},
		"perf_event_open":  {nr(298, 241), 0, 0, 0, 0, 0},
		"userfaultfd":      {nr(323, 282), 0},
		"init_module":      {syscall.SYS_INIT_MODULE, empty, 0, empty},
		"finit_module":     {nr(313, 273), 0, empty, 0},
		"delete_module":    {syscall.SYS_DELETE_MODULE, pointer("none"), 0},
		"kexec_load":       {syscall.SYS_KEXEC_LOAD, 0, 0, 0, 0},
		"reboot":           {syscall.SYS_REBOOT, 0, 0, 0, 0},
		"swapon":           {syscall.SYS_SWAPON, pointer("/none"), 0},
		"add_key":          {syscall.SYS_ADD_KEY, pointer("user"), pointer("x"), empty, 1, ^uintptr(2)},
		"keyctl":           {syscall.SYS_KEYCTL, 0, ^uintptr(2), 0},
		"request_key":      {syscall.SYS_REQUEST_KEY, pointer("user"), pointer("x"), 0, 0},
		"settimeofday":     {syscall.SYS_SETTIMEOFDAY, 0, 0},
		"sethostname":      {syscall.SYS_SETHOSTNAME, pointer("x"), 1},
		"syslog":           {syscall.SYS_SYSLOG, 3, 0, 0},
		"quotactl":         {syscall.SYS_QUOTACTL, 0x80000100, 0, 0, 0},
		"lookup_dcookie":   {syscall.SYS_LOOKUP_DCOOKIE, 0, 0, 0},
		"kcmp with parent": {nr(312, 272), uintptr(os.Getpid()), uintptr(os.Getppid()), 1, 0, 0},
	} {
		if name == "kcmp with parent" && os.Getppid() < 2 || name == "settimeofday" {
			continue // nobody to compare with; a null pointer sets nothing
		}
		if works(a[0], a[1:]...) {
			got("%s is allowed", name)
		}
	}
}

// key NAME prints the key of that name if the session has it: it may be that of den.
func key(a []string) error {
	if len(a) != 1 {
		return errors.New("want NAME")
	}
	const search, session = 10, ^uintptr(2)
	id, _, errno := syscall.Syscall6(syscall.SYS_KEYCTL, search, session, pointer("user"), pointer(a[0]), 0, 0)
	if errno == syscall.ENOKEY {
		fmt.Println("no key")
		return nil
	}
	if errno != 0 {
		return errno
	}
	_, err := fmt.Println("key", id)
	return err
}

// deviceNodes opens the disk, memory and the kernel's log by nodes of its own.
func deviceNodes(dirs []string, got func(string, ...any)) {
	type dev struct{ mode, major, minor uint32 }
	devs := []dev{{syscall.S_IFCHR, 1, 1}, {syscall.S_IFCHR, 1, 11}, {syscall.S_IFCHR, 10, 200}, {syscall.S_IFCHR, 5, 1}, {syscall.S_IFBLK, 7, 0}}
	b, _ := os.ReadFile("/proc/partitions")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 {
			major, err1 := strconv.Atoi(f[0])
			minor, err2 := strconv.Atoi(f[1])
			if err1 == nil && err2 == nil {
				devs = append(devs, dev{syscall.S_IFBLK, uint32(major), uint32(minor)})
			}
		}
	}
	for _, dir := range append(dirs, "/dev", "/dev/shm", "/tmp", "/") {
		node := filepath.Join(dir, "hostile-node")
		for _, d := range devs {
			_ = os.Remove(node)
			if syscall.Mknod(node, d.mode|0o666, int(d.minor&0xff|d.major<<8|(d.minor&^0xff)<<12)) != nil {
				continue
			}
			fd, err := syscall.Open(node, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err == nil {
				syscall.Close(fd)
			}
			if err == nil || err == syscall.ENXIO || err == syscall.EBUSY {
				got("device %d:%d can be opened in %s", d.major, d.minor, dir)
			}
		}
		_ = os.Remove(node)
	}
}

// kernelFiles are written to by nobody in a container, and some are not even read.
func kernelFiles(_ []string, got func(string, ...any)) {
	for _, root := range []string{"/sys", "/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Type()&fs.ModeSymlink != 0 {
				return nil
			}
			fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
			if err == nil {
				syscall.Close(fd)
				got("%s can be written", path)
			}
			return nil
		})
		if os.Mkdir(root+"/hostile", 0o700) == nil {
			_ = os.Remove(root + "/hostile")
			got("directories can be made in %s", root)
		}
	}
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, dir := range append(cgroups, "/sys/fs/cgroup") {
		if os.Mkdir(dir+"/hostile", 0o700) == nil {
			_ = os.Remove(dir + "/hostile")
			got("cgroups can be made in %s", dir)
		}
	}
	for _, path := range []string{"/proc/sysrq-trigger", "/proc/mtrr", "/proc/kcore", "/proc/1/oom_adj/x"} {
		if fd, err := syscall.Open(path, syscall.O_WRONLY, 0); err == nil {
			if n, _ := syscall.Write(fd, []byte{0}); path != "/proc/kcore" || n != 1 { // a mask takes everything
				got("%s can be written", path)
			}
			syscall.Close(fd)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/proc/vmcore"} {
		if b, err := readSome(path); err == nil && len(b) > 0 {
			got("%s can be read", path)
		}
	}
}

func readSome(path string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	b := make([]byte, 64)
	n, err := syscall.Read(fd, b)
	return b[:max(n, 0)], err
}

// fileHandles opens files by their number, past every root directory.
func fileHandles(dirs []string, got func(string, ...any)) {
	for _, dir := range append(dirs, "/", "/etc/resolv.conf", "/dev/null") {
		mount, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		handle := make([]byte, 16) // 8 bytes of type FILEID_INO32_GEN for inode 2
		handle[0], handle[4], handle[8] = 8, 1, 2
		if works(nr(304, 265), uintptr(mount), uintptr(unsafe.Pointer(&handle[0])), 0) {
			got("files can be opened by handle on %s", dir)
		}
		syscall.Close(mount)
	}
}

// mounts makes new ones, and lifts what holds the present ones down.
func mounts(dirs []string, got func(string, ...any)) {
	for _, dir := range append(dirs, "/tmp") {
		for _, fs := range []string{"tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "overlay", "ext4", "debugfs", "mqueue", "devpts", "fuse"} {
			if syscall.Mount("none", dir, fs, 0, "") == nil {
				got("%s can be mounted", fs)
			}
		}
		if syscall.Mount("/", dir, "", syscall.MS_BIND|syscall.MS_REC, "") == nil {
			got("directories can be mounted on %s", dir)
		}
	}
	for _, at := range []string{"/sys", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup", "/dev", "/"} {
		if syscall.Mount("none", at, "", syscall.MS_REMOUNT|syscall.MS_BIND, "") == nil {
			got("%s can be mounted anew", at)
		}
	}
	if syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_SHARED, "") == nil {
		got("mounts can be sent elsewhere")
	}
}

// oldRoot climbs out of a root directory that it made inside the one it has.
func oldRoot(_ []string, got func(string, ...any)) {
	var before, after syscall.Stat_t
	fd, err := syscall.Open("/", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil || syscall.Stat("/", &before) != nil {
		return
	}
	below := "/tmp/hostile-root"
	if os.Mkdir(below, 0o700) != nil || syscall.Chroot(below) != nil {
		return
	}
	_ = syscall.Fchdir(fd)
	for range 64 {
		_ = syscall.Chdir("..")
	}
	if syscall.Chroot(".") == nil && syscall.Stat("/", &after) == nil && (after.Dev != before.Dev || after.Ino != before.Ino) {
		list, _ := os.ReadDir("/")
		var names bytes.Buffer
		for _, e := range list {
			fmt.Fprint(&names, e.Name(), " ")
		}
		got("another root directory can be reached: %s", names.String())
	}
	_ = os.Remove(below)
}
