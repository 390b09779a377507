package sys

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CapSet is a set of capabilities, bit n for capability number n.
type CapSet uint64

// capNames by number (include/uapi/linux/capability.h).
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// ParseCap is the set with the one capability of that name, with or without
// "CAP_", in any case; "ALL" is every capability.
func ParseCap(name string) (CapSet, error) {
	n := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if n == "ALL" {
		return 1<<len(capNames) - 1, nil
	}
	for i, c := range capNames {
		if c == n {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("capability %.40q: unknown", name)
}

// ParseCaps is the set of all names.
func ParseCaps(names []string) (CapSet, error) {
	var s CapSet
	for _, n := range names {
		c, err := ParseCap(n)
		if err != nil {
			return 0, err
		}
		s |= c
	}
	return s, nil
}

// Has reports whether s has the capability with that number (unix.CAP_...).
func (s CapSet) Has(n int) bool { return s>>n&1 != 0 }

// Names lists the capabilities in s with their prefix, by number.
func (s CapSet) Names() []string {
	var names []string
	for i, n := range capNames {
		if s.Has(i) {
			names = append(names, "CAP_"+n)
		}
	}
	return names
}

// A Status is what /proc/self/status says about the calling process's rights.
type Status struct {
	Effective, Permitted, Bounding CapSet
	NoNewPrivs                     bool
	// Seccomp is 0 (none), 1 (strict) or 2 (filter).
	Seccomp int
}

// SelfStatus reads the calling process's rights.
func SelfStatus() (Status, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return Status{}, fmt.Errorf("rights of this process: %w", err)
	}
	defer f.Close()
	var st Status
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		value = strings.TrimSpace(value)
		set := func(s *CapSet) {
			n, err := strconv.ParseUint(value, 16, 64)
			if err == nil {
				*s = CapSet(n)
			}
		}
		switch key {
		case "CapEff":
			set(&st.Effective)
		case "CapPrm":
			set(&st.Permitted)
		case "CapBnd":
			set(&st.Bounding)
		case "NoNewPrivs":
			st.NoNewPrivs = value == "1"
		case "Seccomp":
			st.Seccomp, _ = strconv.Atoi(value)
		}
	}
	if err := sc.Err(); err != nil {
		return Status{}, fmt.Errorf("rights of this process: %w", err)
	}
	return st, nil
}

// OwnStatus is SelfStatus, asked of the kernel call by call where /proc does not tell.
func OwnStatus() Status {
	if st, err := SelfStatus(); err == nil {
		return st
	}
	return askStatus()
}

func askStatus() (st Status) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) == nil {
		st.Effective = CapSet(data[0].Effective) | CapSet(data[1].Effective)<<32
		st.Permitted = CapSet(data[0].Permitted) | CapSet(data[1].Permitted)<<32
	}
	ask := func(option int, arg uintptr) int {
		n, err := unix.PrctlRetInt(option, arg, 0, 0, 0)
		if err != nil {
			return 0
		}
		return n
	}
	for i := range capNames {
		if ask(unix.PR_CAPBSET_READ, uintptr(i)) == 1 {
			st.Bounding |= 1 << i
		}
	}
	st.NoNewPrivs = ask(unix.PR_GET_NO_NEW_PRIVS, 0) == 1
	st.Seccomp = ask(unix.PR_GET_SECCOMP, 0)
	return st
}

// CapSetArgs are the header and the data for capset(2), version 3.
func (p *Plan) CapSetArgs(effective, permitted, inheritable CapSet) (header, data Arg) {
	le := binary.LittleEndian
	h := le.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3) // and pid 0
	var d []byte
	for _, shift := range []int{0, 32} {
		for _, s := range []CapSet{effective, permitted, inheritable} {
			d = le.AppendUint32(d, uint32(s>>shift))
		}
	}
	return p.Bytes(h), p.Bytes(d)
}
