package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// SpecOptions are the choices in DefaultSpec.
type SpecOptions struct {
	Args, Env []string
	// Cwd is "/" if empty; it is created if missing.
	Cwd string
	// Hostname is the outer container's if empty.
	Hostname string
	UID, GID uint32
	// Groups are the additional group ids.
	Groups []uint32
	// Umask is 0022 if nil.
	Umask *uint32
	// CapAdd and CapDrop are names with or without CAP_, or ALL.
	CapAdd, CapDrop []string
	// Insecure is BuildKit's SECURITY=insecure and Docker's --privileged: no
	// seccomp filter, nothing masked, every device and every capability that
	// den itself has.
	Insecure bool
	// NoNewPrivileges only where the user asks for it.
	NoNewPrivileges bool
	// NoSeccomp is --security-opt seccomp=unconfined.
	NoSeccomp    bool
	Terminal     bool
	ReadOnlyRoot bool
	// ShmSizeBytes is 64 MiB if 0.
	ShmSizeBytes int64
	Rlimits      []specs.POSIXRlimit
	Resources    *specs.LinuxResources
}

// defaultCaps are Docker's (moby daemon/pkg/oci/caps/defaults.go).
var defaultCaps = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

// DefaultSpec returns Docker's defaults: mounts, masked and read-only paths,
// capabilities, seccomp profile, devices and namespaces.
func DefaultSpec(o SpecOptions) (*specs.Spec, error) {
	caps, err := capabilities(o)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  specs.Version,
		Hostname: o.Hostname,
		Root:     &specs.Root{Readonly: o.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal: o.Terminal,
			User:     specs.User{UID: o.UID, GID: o.GID, AdditionalGids: o.Groups, Umask: o.Umask},
			Args:     o.Args, Env: o.Env, Cwd: o.Cwd,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps},
			Rlimits:         o.Rlimits,
			NoNewPrivileges: o.NoNewPrivileges,
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace},
			},
		},
	}
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	if o.Resources != nil {
		r := *o.Resources
		s.Linux.Resources = &r
	}
	// The device rule is how OCI spells "may use any device that it can name".
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: o.Insecure, Access: "rwm"}}
	s.Mounts = defaultMounts(o)
	if o.Insecure {
		s.Linux.Devices, err = outerDevices()
		return s, err
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = MaskedPaths(), ReadonlyPaths()
	if !o.NoSeccomp {
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
	}
	return s, nil
}

// capabilities applies CapAdd and CapDrop as Docker does: the set without ALL,
// if ALL is added, is everything but what is dropped.
func capabilities(o SpecOptions) ([]string, error) {
	set, err := sys.ParseCaps(defaultCaps)
	if err != nil {
		return nil, err
	}
	add, err := sys.ParseCaps(o.CapAdd)
	if err != nil {
		return nil, fmt.Errorf("add %w", err)
	}
	drop, err := sys.ParseCaps(o.CapDrop)
	if err != nil {
		return nil, fmt.Errorf("drop %w", err)
	}
	all, _ := sys.ParseCap("ALL")
	switch {
	case o.Insecure || add == all:
		set = all &^ drop
		if drop == all {
			set = 0
		}
	case drop == all:
		set = add
	default:
		set = set&^drop | add
	}
	return set.Names(), nil
}

func defaultMounts(o SpecOptions) []specs.Mount {
	shm := o.ShmSizeBytes
	if shm == 0 {
		shm = 64 << 20
	}
	ro := "ro"
	if o.Insecure {
		ro = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{ro, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
	}
}

// ReadonlyPaths are the paths of proc that may be read only, unless a request says otherwise: Docker's.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// MaskedPaths are the paths that are hidden, unless a request says otherwise: Docker's (moby daemon/pkg/oci/defaults.go).
func MaskedPaths() []string {
	paths := []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	throttle, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	return append(paths, throttle...)
}

// outerDevices lists the device nodes of the outer container, which an
// insecure sandbox may all use.
func outerDevices() ([]specs.LinuxDevice, error) {
	var devs []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil { // gone meanwhile, or not ours to read
			return nil //nolint:nilerr // a device that cannot be read cannot be given
		}
		switch name := d.Name(); {
		case d.IsDir() && path != "/dev" && (strings.HasPrefix(name, ".") || name == "pts" || name == "shm" || name == "mqueue" || name == "fd"):
			return fs.SkipDir
		case d.Type()&os.ModeDevice == 0 || path == "/dev/console" || path == "/dev/ptmx":
			return nil
		}
		if dev, err := device(path); err == nil {
			devs = append(devs, dev)
		}
		return nil
	})
	return devs, err
}

// Devices describes the device node at path, or all below it if it is a directory.
func Devices(path string) ([]specs.LinuxDevice, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		d, err := device(path)
		if err == nil && fi.Mode()&os.ModeDevice == 0 {
			err = fmt.Errorf("%s is not a device node", path)
		}
		return []specs.LinuxDevice{d}, err
	}
	var devs []specs.LinuxDevice
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&os.ModeDevice == 0 {
			return nil //nolint:nilerr // a device that cannot be read cannot be given
		}
		if dev, err := device(name); err == nil {
			devs = append(devs, dev)
		}
		return nil
	})
	return devs, err
}

// device describes the device node at path.
func device(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, fmt.Errorf("device %s: %w", path, err)
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
