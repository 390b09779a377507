package main

import (
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"net"
	"strconv"
	"strings"
	"time"

	"den/internal/engine"
	"den/internal/oci"
)

// body is the request of POST /containers/create.
func (o *dockerRun) body(req *engine.RunRequest, createOnly bool) (map[string]any, error) {
	host, err := o.hostConfig(req)
	if err != nil {
		return nil, err
	}
	foreground := !o.detach && !createOnly
	body := map[string]any{
		"Image": req.Image, "Env": req.Env, "Labels": req.Labels, "WorkingDir": req.WorkingDir, "User": req.User, "Hostname": req.Hostname, "Domainname": o.domainname,
		"Tty": req.TTY, "OpenStdin": o.interactive, "StdinOnce": o.interactive && foreground,
		"AttachStdin": o.interactive && foreground, "AttachStdout": foreground && o.attached("stdout"), "AttachStderr": foreground && o.attached("stderr"),
		"StopSignal": req.StopSignal, "StopTimeout": req.StopSeconds, "HostConfig": host,
	}
	if len(req.Args) > 0 {
		body["Cmd"] = req.Args
	}
	if req.Entrypoint != nil {
		body["Entrypoint"] = req.Entrypoint
	}
	exposed := map[string]any{}
	for _, p := range o.expose {
		exposed[withProtocol(p)] = struct{}{}
	}
	for p := range host["PortBindings"].(map[string][]portBinding) {
		exposed[p] = struct{}{}
	}
	body["ExposedPorts"] = exposed
	if body["Healthcheck"], err = o.health(); err != nil {
		return nil, err
	}
	endpoint := map[string]any{}
	if len(o.aliases) > 0 {
		endpoint["Aliases"] = o.aliases
	}
	if o.ip != "" || o.ip6 != "" {
		endpoint["IPAMConfig"] = map[string]string{"IPv4Address": o.ip, "IPv6Address": o.ip6}
	}
	if o.mac != "" {
		endpoint["MacAddress"] = o.mac
	}
	if len(endpoint) > 0 {
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]any{o.network: endpoint}}
	}
	return body, nil
}

func (o *dockerRun) hostConfig(req *engine.RunRequest) (map[string]any, error) {
	bindings, err := publishedPorts(o.publish)
	if err != nil {
		return nil, err
	}
	restart, retries, _ := strings.Cut(o.restart, ":")
	tries, err := strconv.Atoi(orZero(retries))
	if err != nil {
		return nil, fmt.Errorf("restart policy %q: want on-failure[:N]", o.restart)
	}
	h := map[string]any{
		"NetworkMode": o.network, "PortBindings": bindings, "PublishAllPorts": o.publishAll, "AutoRemove": o.remove, "Privileged": o.privileged,
		"Binds": o.volumes, "Mounts": o.mountBodies(req), "VolumesFrom": o.volumesFrom, "Links": o.links, "Devices": o.deviceBodies(),
		"CapAdd": req.CapAdd, "CapDrop": req.CapDrop, "GroupAdd": req.GroupAdd, "SecurityOpt": req.Security, "Sysctls": req.Sysctls,
		"Dns": req.DNS, "DnsSearch": req.DNSSearch, "DnsOptions": req.DNSOptions, "ExtraHosts": req.AddHosts,
		"ReadonlyRootfs": req.ReadOnly, "Init": initBody(req.Init), "ShmSize": req.ShmBytes,
		"Memory": req.Limits.MemoryBytes, "MemorySwap": req.Limits.MemorySwapBytes, "NanoCpus": int64(req.Limits.CPUs * 1e9), "CpuShares": req.Limits.CPUShares, "CpusetCpus": req.Limits.CpusetCPUs,
		"MemoryReservation": req.Limits.MemoryReservationBytes, "BlkioWeight": req.Limits.BlkioWeight, "CpusetMems": req.Limits.CpusetMems,
		"PidMode": o.pid, "IpcMode": o.ipc, "UTSMode": o.uts, "UsernsMode": o.userns, "CgroupnsMode": o.cgroupns,
		"RestartPolicy": map[string]any{"Name": restart, "MaximumRetryCount": tries},
		"LogConfig":     map[string]any{"Type": o.logDriver, "Config": keyValues(o.logOpts)}, "Annotations": keyValues(o.annotations),
	}
	if req.Limits.Pids != 0 {
		h["PidsLimit"] = req.Limits.Pids
	}
	var limits []map[string]any
	for _, u := range req.Ulimits {
		limits = append(limits, map[string]any{"Name": u.Name, "Soft": int64(u.Soft), "Hard": int64(u.Hard)})
	}
	h["Ulimits"] = limits
	tmpfs := map[string]string{}
	for _, t := range o.tmpfs {
		path, options, _ := strings.Cut(t, ":")
		tmpfs[path] = options
	}
	h["Tmpfs"] = tmpfs
	o.dockerLimits.apply(h)
	return h, nil
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

func initBody(on bool) any {
	if on {
		return true
	}
	return nil
}

// mountBodies are those of --mount. What -v and --tmpfs asked for goes as it was typed.
func (o *dockerRun) mountBodies(req *engine.RunRequest) []map[string]any {
	all := []map[string]any{}
	for i, m := range req.Mounts {
		if i < len(o.volumes) || i >= len(o.volumes)+len(o.mounts) {
			continue
		}
		one := map[string]any{"Type": string(m.Kind), "Source": m.Source, "Target": m.Target, "ReadOnly": m.ReadOnly}
		switch m.Kind {
		case engine.MountVolume:
			one["VolumeOptions"] = map[string]any{"NoCopy": m.NoCopy}
		case engine.MountBind:
			one["BindOptions"] = map[string]any{"NonRecursive": m.Shallow, "CreateMountpoint": m.CreateSource}
		case engine.MountTmpfs:
			one["TmpfsOptions"] = tmpfsBody(m.Options)
		}
		all = append(all, one)
	}
	return all
}

func tmpfsBody(options []string) map[string]any {
	body := map[string]any{}
	for _, option := range options {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "size":
			body["SizeBytes"], _ = strconv.ParseInt(value, 10, 64) // as parseMount wrote it
		case "mode":
			body["Mode"], _ = strconv.ParseInt(value, 8, 32)
		}
	}
	return body
}

func (o *dockerRun) deviceBodies() []map[string]string {
	all := []map[string]string{}
	for _, d := range o.devices {
		parts := strings.SplitN(d, ":", 3)
		one := map[string]string{"PathOnHost": parts[0], "PathInContainer": parts[0], "CgroupPermissions": "rwm"}
		if len(parts) > 1 {
			one["PathInContainer"] = parts[1]
		}
		if len(parts) > 2 {
			one["CgroupPermissions"] = parts[2]
		}
		all = append(all, one)
	}
	return all
}

// health is the check that was asked for, nil for the image's own.
func (o *dockerRun) health() (any, error) {
	if o.noHealth && o.healthCmd+o.healthInterval+o.healthTimeout+o.healthStart+o.healthStartInterval != "" {
		return nil, errors.New("--no-healthcheck conflicts with --health-* options")
	}
	if o.noHealth {
		return map[string]any{"Test": []string{"NONE"}}, nil
	}
	h := map[string]any{}
	if o.healthCmd != "" {
		h["Test"] = []string{"CMD-SHELL", o.healthCmd}
	}
	for name, text := range map[string]string{"Interval": o.healthInterval, "Timeout": o.healthTimeout, "StartPeriod": o.healthStart, "StartInterval": o.healthStartInterval} {
		if text == "" {
			continue
		}
		t, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("health check: %w", err)
		}
		h[name] = t
	}
	if o.healthRetries > 0 {
		h["Retries"] = o.healthRetries
	}
	if len(h) == 0 {
		return nil, nil
	}
	return h, nil
}

type portBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// publishedPorts reads -p: [IP:][HOST:]CONTAINER[/PROTOCOL], with ranges of one length.
func publishedPorts(specs []string) (map[string][]portBinding, error) {
	all := map[string][]portBinding{}
	for _, spec := range specs {
		bad := func(why string) error {
			return fmt.Errorf("publish %q: %s; want [IP:][HOST:]CONTAINER[/PROTOCOL]", spec, why)
		}
		s, protocol, _ := strings.Cut(spec, "/")
		protocol = strings.ToLower(protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		ip, rest := "", s
		if strings.HasPrefix(s, "[") {
			end := strings.Index(s, "]:")
			if end < 0 {
				return nil, bad("an address in brackets needs ]:")
			}
			ip, rest = s[1:end], s[end+2:]
		} else if parts := strings.Split(s, ":"); len(parts) == 3 {
			ip, rest = parts[0], parts[1]+":"+parts[2]
		}
		host, container, found := strings.Cut(rest, ":")
		if !found {
			host, container = "", rest
		}
		if ip != "" && net.ParseIP(ip) == nil {
			return nil, bad("no IP address")
		}
		from, to, err := portRange(container)
		if err != nil {
			return nil, bad(err.Error())
		}
		hostFrom, hostTo := 0, 0
		if host != "" {
			if hostFrom, hostTo, err = portRange(host); err != nil {
				return nil, bad(err.Error())
			}
			if to > from && hostTo-hostFrom != to-from {
				return nil, bad("ranges of different length")
			}
		}
		for p := from; p <= to; p++ {
			b := portBinding{HostIP: ip}
			switch {
			case host == "":
			case to > from:
				b.HostPort = strconv.Itoa(hostFrom + p - from)
			default:
				b.HostPort = host
			}
			key := fmt.Sprintf("%d/%s", p, protocol)
			all[key] = append(all[key], b)
		}
	}
	return all, nil
}

func portRange(s string) (from, to int, err error) {
	first, last, found := strings.Cut(s, "-")
	if !found {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || b < a {
		return 0, 0, fmt.Errorf("%q is no port, nor a range", s)
	}
	return int(a), int(b), nil
}

func withProtocol(port string) string {
	if strings.Contains(port, "/") {
		return port
	}
	return port + "/tcp"
}

// familiarName is a name as docker's messages show it.
func familiarName(name string) string {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return name
	}
	return ref.Familiar()
}

func decodeOne(r stdio.Reader, v any) error { return json.NewDecoder(r).Decode(v) }

func copyAll(to stdio.Writer, from stdio.Reader) (int64, error) { return stdio.Copy(to, from) }
