package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/cli/pkg/kvfile"
	"github.com/docker/go-units"

	"den/internal/engine"
)

// request is what the flags ask for.
func (call runCall) request() (req engine.RunRequest, err error) {
	o := call.options
	req = engine.RunRequest{
		Image: call.image, Pull: o.pull, Name: o.name, Args: call.args, WorkingDir: o.workdir,
		User: o.user, GroupAdd: o.groupAdd, Hostname: o.hostname, AddHosts: o.addHosts,
		DNS: o.dns, DNSSearch: o.dnsSearch, DNSOptions: o.dnsOptions,
		Network: o.network, CapAdd: o.capAdd, CapDrop: o.capDrop, Security: o.securityOpt,
		ReadOnly: o.readOnly, Init: o.init, StopSignal: o.stopSignal, Remove: o.remove,
		TTY: o.tty, OpenStdin: o.interactive || slices.Contains(o.attach, "stdin"), CIDFile: o.cidFile,
	}
	for i, a := range o.attach {
		if o.attach[i] = strings.ToLower(a); !slices.Contains([]string{"stdin", "stdout", "stderr"}, o.attach[i]) {
			return req, &usageError{fmt.Sprintf("attach %q: valid streams are STDIN, STDOUT and STDERR", a)}
		}
	}
	if o.detach && len(o.attach) > 0 {
		return req, &usageError{"conflicting options: cannot specify both --attach and --detach"}
	}
	if call.set("entrypoint") {
		req.Entrypoint = []string{o.entrypoint}
	}
	if call.set("stop-timeout") {
		req.StopSeconds = &o.stopTimeout
	}
	if req.Platform, err = parsePlatform(o.platform); err != nil {
		return req, err
	}
	for _, part := range []func(*engine.RunRequest) error{call.environment, call.labels, call.mounts, call.limits} {
		if err := part(&req); err != nil {
			return req, err
		}
	}
	return req, nil
}

// labels reads --label-file, --label and, of the same shape, --sysctl.
func (call runCall) labels(req *engine.RunRequest) error {
	var labels []string
	for _, file := range call.options.labelFiles {
		lines, err := kvfile.Parse(file, func(string) (string, bool) { return "", true })
		if err != nil {
			return &usageError{fmt.Sprintf("label file: %v", err)}
		}
		labels = append(labels, lines...)
	}
	req.Labels = keyValues(append(labels, call.options.labels...))
	req.Sysctls = keyValues(call.options.sysctls)
	return nil
}

// keyValues reads KEY[=VALUE] entries; nil for none.
func keyValues(entries []string) map[string]string {
	if len(entries) == 0 {
		return nil
	}
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return m
}

func (call runCall) mounts(req *engine.RunRequest) error {
	for _, group := range []struct {
		specs []string
		parse func(string) (engine.Mount, error)
	}{{call.options.volumes, parseVolume}, {call.options.mounts, parseMount}, {call.options.tmpfs, parseTmpfs}} {
		for _, s := range group.specs {
			m, err := group.parse(s)
			if err != nil {
				return err
			}
			req.Mounts = append(req.Mounts, m)
		}
	}
	return nil
}

func (call runCall) limits(req *engine.RunRequest) (err error) {
	o := call.options
	l := &req.Limits
	*l = engine.Limits{Pids: o.pidsLimit, CPUShares: o.cpuShares, CpusetCPUs: o.cpusetCPUs, CpusetMems: o.cpusetMems, BlkioWeight: o.blkioWeight}
	if l.MemoryBytes, err = byteSize("memory", o.memory); err != nil {
		return err
	}
	if l.MemoryReservationBytes, err = byteSize("memory-reservation", o.reservation); err != nil {
		return err
	}
	if o.memorySwap == "-1" {
		l.MemorySwapBytes = -1
	} else if l.MemorySwapBytes, err = byteSize("memory-swap", o.memorySwap); err != nil {
		return err
	}
	if req.ShmBytes, err = byteSize("shm-size", o.shmSize); err != nil {
		return err
	}
	if o.cpus != "" {
		if l.CPUs, err = strconv.ParseFloat(o.cpus, 64); err != nil || !(l.CPUs >= 0) {
			return &usageError{fmt.Sprintf("cpus %q: want a number such as 1.5", o.cpus)}
		}
	}
	for _, u := range o.ulimits {
		limit, err := units.ParseUlimit(u)
		if err != nil {
			return &usageError{fmt.Sprintf("ulimit %q: %v", u, err)}
		}
		req.Ulimits = append(req.Ulimits, engine.Ulimit{Name: limit.Name, Soft: uint64(limit.Soft), Hard: uint64(limit.Hard)})
	}
	return nil
}

func byteSize(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, &usageError{fmt.Sprintf("%s %q: want a size such as 512m or 2g", flag, s)}
	}
	return n, nil
}
