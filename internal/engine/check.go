package engine

import (
	"net/netip"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"den/internal/sandbox"
)

// minMemoryBytes is docker's least memory limit.
const minMemoryBytes = 6 << 20

// check finds, before anything is pulled, what cannot be done. Its errors are of
// class errdefs.ErrInvalidArgument and in docker's words where those are known.
func (r *RunRequest) check() error {
	for _, check := range []func() error{r.checkNetwork, r.checkMounts, r.checkLimits, r.checkSysctls} {
		if err := check(); err != nil {
			return err
		}
	}
	switch r.Pull {
	case "", "always", "missing", "never":
	default:
		return invalid("invalid pull option: %q: must be one of \"always\", \"missing\" or \"never\"", r.Pull)
	}
	if r.WorkingDir != "" && !path.IsAbs(r.WorkingDir) {
		return invalid("the working directory %q is invalid, it needs to be an absolute path", r.WorkingDir)
	}
	if r.StopSignal != "" {
		if _, err := ParseSignal(r.StopSignal); err != nil {
			return err
		}
	}
	for _, s := range r.Security {
		if err := security(s, &securityOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func (r *RunRequest) checkNetwork() error {
	switch r.Network {
	case "", "default", sandbox.NetworkHost, sandbox.NetworkNone:
	default:
		return invalid("network %q: den run has host (that of the container around den) and none; other networks are those of a den serve: docker run, or den docker run, by its socket", r.Network)
	}
	for _, h := range r.AddHosts {
		if _, _, err := parseHost(h); err != nil {
			return err
		}
	}
	for _, d := range r.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return invalid("dns %q: want an IP address", d)
		}
	}
	return nil
}

func (r *RunRequest) checkMounts() error {
	taken := map[string]bool{}
	for _, m := range r.Mounts {
		switch {
		case !path.IsAbs(m.Target):
			return invalid("invalid mount config: mount path %q must be absolute", m.Target)
		case path.Clean(m.Target) == "/":
			return invalid("invalid mount config: destination can't be '/'")
		case taken[path.Clean(m.Target)]:
			return invalid("duplicate mount point: %s", m.Target)
		}
		taken[path.Clean(m.Target)] = true
	}
	return nil
}

func (r *RunRequest) checkLimits() error {
	l := r.Limits
	switch {
	case l.MemoryBytes > 0 && l.MemoryBytes < minMemoryBytes:
		return invalid("minimum memory limit allowed is 6MB")
	case l.MemorySwapBytes > 0 && l.MemoryBytes == 0:
		return invalid("you should always set the memory limit when using memory-swap")
	case l.MemorySwapBytes > 0 && l.MemorySwapBytes < l.MemoryBytes:
		return invalid("minimum memory-swap limit should be larger than memory limit")
	case l.MemoryReservationBytes > 0 && l.MemoryReservationBytes < minMemoryBytes:
		return invalid("minimum memory reservation allowed is 6MB")
	case l.MemoryBytes > 0 && l.MemoryReservationBytes > l.MemoryBytes:
		return invalid("minimum memory limit can not be less than memory reservation limit, see usage")
	case l.BlkioWeight > 0 && (l.BlkioWeight < 10 || l.BlkioWeight > 1000):
		return invalid("range of blkio weight is from 10 to 1000")
	case strings.Trim(l.CpusetMems, "0123456789,-") != "":
		return invalid("Invalid value %.200s for cpuset mems", l.CpusetMems)
	case l.CPUs < 0 || l.CPUs > float64(runtime.NumCPU()):
		return invalid("range of CPUs is from 0.01 to %d.00, as there are only %[1]d CPUs available", runtime.NumCPU())
	}
	return checkCPUs(l.CpusetCPUs)
}

// checkCPUs reads a list of processors such as 0-2,5.
func checkCPUs(list string) error {
	if list == "" {
		return nil
	}
	last := runtime.NumCPU() - 1
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		end, eerr := strconv.ParseUint(to, 10, 16)
		if err != nil || eerr != nil || end < first {
			return invalid("Invalid value %.200s for cpuset cpus: invalid format: %[1]s", list)
		}
		if int(end) > last {
			return invalid("Requested CPUs are not available - requested %.200s, available: 0-%d", list, last)
		}
	}
	return nil
}

// ipcSysctls belong to an IPC namespace, so a container can have its own.
var ipcSysctls = [...]string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// checkSysctls lets through what is the container's own: any other would change
// the machine around it.
func (r *RunRequest) checkSysctls() error {
	for name := range r.Sysctls {
		switch {
		case slices.Contains(ipcSysctls[:], name), strings.HasPrefix(name, "fs.mqueue."):
		case strings.HasPrefix(name, "net.") && r.Network == sandbox.NetworkNone:
		case strings.HasPrefix(name, "net."):
			return invalid("sysctl %q is not allowed in the host's network", name)
		default:
			return invalid("sysctl %q is not in a separate kernel namespace", name)
		}
	}
	return nil
}
