package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"den/internal/daemon"
	"den/internal/socket"
)

// servePage is the page about den serve.
const servePage = "docs/serve.md"

// serveOptions are the flags of den serve, spelt as dockerd spells them.
type serveOptions struct {
	hosts          []string
	group          string
	tls, tlsVerify bool
	files          socket.ServerFiles
	pidFile        string
	exitWith       string
	serve          daemon.ServeOptions
	shutdown       int
	ignored        ignored
	level          string
	bridge         string
	icc            bool
	validate       bool

	// certDir and refuse are the entry point's: where certificates are made, and the address
	// that is there for health checks only.
	certDir, refuse string
	// dockerd says that defaults are dockerd's: its data root, its port.
	dockerd bool
}

// A listValue is a flag that adds each value, and prints them as dockerd does.
type listValue struct{ to *[]string }

// Set adds a value.
func (l listValue) Set(v string) error { return l.Append(v) }

// Append is pflag.SliceValue's.
func (l listValue) Append(v string) error {
	*l.to = append(*l.to, v)
	return nil
}

// Replace is pflag.SliceValue's.
func (l listValue) Replace(v []string) error {
	*l.to = v
	return nil
}

// GetSlice is pflag.SliceValue's.
func (l listValue) GetSlice() []string { return *l.to }

func (l listValue) String() string {
	if l.to == nil || len(*l.to) == 0 {
		return ""
	}
	return fmt.Sprint(*l.to)
}

// Type is what help shows for the value.
func (l listValue) Type() string { return "list" }

// bind binds the flags. Those of globals that dockerd has, too, get dockerd's letters.
func (o *serveOptions) bind(f *pflag.FlagSet, g *globals) {
	list := func(to *[]string, name, letter, usage string) { f.VarP(listValue{to}, name, letter, usage) }
	e := &o.serve.Engine
	list(&o.hosts, "host", "H", "Where to listen: unix:///PATH, tcp://HOST:PORT, fd:// (repeatable; default unix:///var/run/docker.sock, or docker.sock in $XDG_RUNTIME_DIR)")
	f.StringVarP(&o.group, "group", "G", "", "Group of the unix socket: a name or number (default docker, if there is one)")
	f.BoolVar(&o.tls, "tls", false, "Serve TLS on TCP; implied by --tlsverify")
	f.BoolVar(&o.tlsVerify, "tlsverify", false, "Serve TLS on TCP, to clients whose certificate the authority signed")
	f.StringVar(&o.files.CA, "tlscacert", "", "Certificate authority of clients (default ca.pem in $DOCKER_CERT_PATH, or ~/.docker)")
	f.StringVar(&o.files.Cert, "tlscert", "", "Certificate of the server (default cert.pem there)")
	f.StringVar(&o.files.Key, "tlskey", "", "Key of the server (default key.pem there)")
	f.StringVarP(&o.pidFile, "pidfile", "p", "", "File that holds the process's id while it serves")
	f.StringVarP(&g.dataRoot, "data-root", "g", os.Getenv("DEN_DATA_ROOT"), "Directory that says which engine this is: the owner of names and containers (as dockerd: where the store is, too)")
	f.StringVarP(&g.driver, "storage-driver", "s", "", "How root file systems are made: auto, overlay, fuse-overlayfs, copy (or vfs); other tools' names mean auto")
	f.StringVar(&o.exitWith, "exit-with", "", "End when a process does (PID), or when the other end of an inherited descriptor is closed (fd:N)")
	f.DurationVar(&o.serve.IdleExit, "idle-exit", 0, "End when nothing was asked and nothing ran for this long (such as 10m)")
	f.BoolVar(&o.serve.LiveRestore, "live-restore", false, "Leave containers running at the end, where the rung lets them live alone")
	f.IntVar(&o.shutdown, "shutdown-timeout", 15, "Seconds that all containers may take to end")
	f.BoolVar(&o.validate, "validate", false, "Check flags and configuration file, and end")
	f.StringVar(&e.BIP, "bip", "", "Address and prefix of the default network's gateway")
	f.StringVar(&e.FixedCIDR, "fixed-cidr", "", "Part of the default network that addresses are given from")
	f.StringVar(&e.BIP6, "bip6", "", "Address and prefix of the default network's gateway of IPv6")
	f.StringVar(&e.FixedCIDR6, "fixed-cidr-v6", "", "IPv6 subnet of the default network, or with --bip6 the part that addresses are given from")
	list(&e.Pools, "default-address-pool", "", "Where subnets of new networks come from: base=CIDR,size=BITS (repeatable)")
	f.IntVar(&e.MTU, "mtu", 0, "MTU of networks (default that of the outer route)")
	list(&e.DNS, "dns", "", "DNS server of containers (repeatable)")
	list(&e.DNSSearch, "dns-search", "", "DNS search domain of containers (repeatable)")
	list(&e.DNSOptions, "dns-opt", "", "DNS option of containers (repeatable)")
	f.BoolVar(&e.IPv6, "ipv6", false, "Give the default network IPv6, too")
	f.BoolVar(&o.icc, "icc", true, "Let containers of the default network reach each other")
	f.StringVar(&e.PublishIP, "ip", "", "Address of published ports that name none (default all)")
	list(&e.HostGateways, "host-gateway-ip", "", "What host-gateway stands for in --add-host (repeatable; default the gateway of the container's network)")
	list(&e.NetworkOptions, "default-network-opt", "", "Option of new networks: bridge=KEY=VALUE (repeatable)")
	f.BoolVar(&e.NoHostLoopback, "disable-host-loopback", true, "Keep containers from the loopback addresses of the container around den; =false leads host-gateway there where networks have no kernel bridge")
	f.BoolVar(&e.Init, "init", false, "Put a reaper of processes into every container")
	list(&e.Ulimits, "default-ulimit", "", "Limit of containers: NAME=SOFT[:HARD] (repeatable)")
	f.StringVar(&e.LogDriver, "log-driver", "", "Log of containers: json-file, local, none")
	list(&e.LogOptions, "log-opt", "", "Option of the log: max-size=, max-file=, mode= (repeatable)")
	f.StringVar(&e.CgroupParent, "cgroup-parent", "", "Cgroup below which containers run")
	list(&e.Labels, "label", "", "Label of the engine (repeatable)")
	f.StringVarP(&o.level, "log-level", "l", "info", "Log level: debug, info, warn, error, fatal")
	f.StringVarP(&o.bridge, "bridge", "b", "", "none: no default network")
	o.meaningless(f)
}

// meaningless are dockerd's flags that den takes, so that a command line goes on working, and
// that change nothing here.
func (o *serveOptions) meaningless(f *pflag.FlagSet) {
	o.ignored.flags(f, "exec-root", "storage-opt", "exec-opt", "cluster-store", "cluster-advertise", "cluster-store-opt", "containerd", "containerd-namespace",
		"containerd-plugins-namespace", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts", "feature", "userns-remap", "seccomp-profile", "add-runtime",
		"default-runtime", "default-gateway", "default-gateway-v6", "default-cgroupns-mode", "default-ipc-mode", "default-shm-size",
		"cpu-rt-period", "cpu-rt-runtime", "metrics-addr", "network-control-plane-mtu", "oom-score-adjust", "userland-proxy-path", "init-path",
		"http-proxy", "https-proxy", "no-proxy", "api-cors-header", "min-api-version", "log-format", "authorization-plugin",
		"cdi-spec-dir", "node-generic-resource", "swarm-default-advertise-addr", "firewall-backend", "allow-direct-routing", "registry-mirror-timeout")
	o.ignored.toggles(f, "selinux-enabled", "experimental", "no-new-privileges", "raw-logs", "rootless", "cri-containerd", "bridge-accept-fwmark", "nri-opts")
	// Their defaults are on, and off is what den does anyway: it needs none of them.
	for _, name := range []string{"iptables", "ip6tables", "ip-forward", "ip-forward-no-drop", "ip-masq", "userland-proxy"} {
		o.ignored.toggles(f, name)
	}
}

// timeouts fills in what is not a flag's type.
func (o *serveOptions) complete(g *globals) error {
	o.serve.ShutdownTimeout = time.Duration(o.shutdown) * time.Second
	if o.shutdown < 0 {
		o.serve.ShutdownTimeout = 0
	}
	switch strings.ToLower(o.level) {
	case "debug", "trace":
		g.debug = true
	case "info", "warn", "warning", "error", "fatal", "panic":
	default:
		return &usageError{fmt.Sprintf("--log-level %.40q: want debug, info, warn, error or fatal", o.level)}
	}
	if o.bridge != "" && o.bridge != "none" {
		o.ignored.names = append(o.ignored.names, "bridge")
	}
	if o.serve.Engine.MTU < 0 || o.serve.Engine.MTU > maxMTU {
		return &usageError{fmt.Sprintf("--mtu %d: want 0 to %d bytes", o.serve.Engine.MTU, maxMTU)}
	}
	o.serve.Engine.NoICC = !o.icc
	if note := o.ignored.note(servePage); note != "" {
		g.notes = append(g.notes, note)
	}
	return nil
}

// maxMTU is what an IPv4 packet can be at most.
const maxMTU = 65535
