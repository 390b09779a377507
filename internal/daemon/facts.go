package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/common"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/socket"
)

// facts are what GET /info says of den and of what is around it.
type facts struct {
	den    *Den
	runner *Runner
	serve  ServeOptions
}

func (f facts) info(ctx context.Context) (system.Info, error) {
	images, err := f.den.Images.List(ctx, nil)
	if err != nil {
		return system.Info{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		return system.Info{}, err
	}
	l := f.runner.limits()
	i := system.Info{
		ID: f.den.Store.EngineID(), Name: host, Images: len(images), ServerVersion: f.den.options.Version,
		Driver: f.runner.Driver.Name(), DriverStatus: f.status(),
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "none"}, Log: []string{"json-file", "local", "none"}},
		MemoryLimit: l.own || l.cgroup, SwapLimit: l.cgroup, CPUCfsPeriod: l.own || l.cgroup, CPUCfsQuota: l.own || l.cgroup, CPUShares: l.cgroup, CPUSet: l.own || l.cgroup, PidsLimit: l.own || l.cgroup,
		IPv4Forwarding: true, OomKillDisable: false, NFd: openFiles(), NGoroutines: runtime.NumGoroutine(),
		LoggingDriver: orElse(f.serve.Engine.LogDriver, "json-file"), CgroupDriver: "cgroupfs", CgroupVersion: strconv.Itoa(max(1, f.runner.Facts.Cgroup)),
		KernelVersion: f.runner.Facts.Kernel, OperatingSystem: operatingSystem(), OSType: runtime.GOOS, Architecture: machine(),
		NCPU: runtime.NumCPU(), MemTotal: memTotal(),
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: f.registries(),
		DockerRootDir: f.den.Store.Root(), HTTPProxy: os.Getenv("HTTP_PROXY"), HTTPSProxy: os.Getenv("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		Labels: f.serve.Engine.Labels, Runtimes: map[string]system.RuntimeWithStatus{"den": {}}, DefaultRuntime: "den",
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive, RemoteManagers: nil},
		LiveRestoreEnabled: f.serve.LiveRestore, InitBinary: "den-init", SecurityOptions: f.security(), CDISpecDirs: []string{},
		Warnings: f.warnings(),
	}
	if i.Labels == nil {
		i.Labels = []string{}
	}
	return i, nil
}

// status is what docker info prints below the storage driver.
func (f facts) status() [][2]string {
	rows := [][2]string{
		{"Backing Filesystem", f.runner.Facts.FSType},
		{"Store", f.den.Store.Root()},
		{"Rung", f.runner.Choice.String()},
		{"Why", f.runner.Choice.Why},
	}
	for _, c := range f.runner.Choice.Cannot {
		rows = append(rows, [2]string{"Cannot", c})
	}
	return rows
}

// security names what confines containers, as dockerd does; clients look for name=rootless.
func (f facts) security() []string {
	all := []string{}
	if f.runner.Choice.Rung != sandbox.RungChroot {
		all = append(all, "name=seccomp,profile=builtin")
	}
	switch f.runner.Choice.Rung {
	case sandbox.RungPrivileged:
		all = append(all, "name=cgroupns")
	case sandbox.RungUserns:
		all = append(all, "name=userns", "name=cgroupns")
	}
	if f.runner.Facts.UID != 0 {
		all = append(all, "name=rootless")
	}
	return all
}

// warnings say what is asked for in vain here, and who may come in.
func (f facts) warnings() []string {
	all := []string{}
	for _, l := range f.serve.Listeners {
		if l.Address.Network == socket.TCP && f.serve.TLS == nil {
			all = append(all, "[DEPRECATION NOTICE]: API is accessible on http://"+strings.TrimPrefix(l.Address.String(), "tcp://")+" without encryption.\n"+
				"         Access to the remote API is equivalent to root access on the host. Refer\n"+
				"         to the 'Docker daemon attack surface' section in the documentation for\n"+
				"         more information: https://docs.docker.com/go/attack-surface/")
		}
	}
	switch {
	case f.runner.Choice.Rung == sandbox.RungSentry:
		all = append(all, "WARNING: No swap limit support", "WARNING: No cpu shares support",
			"WARNING: rung "+f.runner.Choice.Name()+": --memory-swap, --cpu-shares and limits of block devices are not enforced; the sentry keeps --memory, --cpus, --cpuset-cpus and --pids-limit")
	case f.runner.Choice.Rung == sandbox.RungChroot:
		all = append(all, "WARNING: No memory limit support", "WARNING: rung chroot: no limits are enforced but those of the container around den, and --ulimit")
	case f.runner.Facts.CgroupErr != "":
		all = append(all, "WARNING: No memory limit support", "WARNING: limits (--memory, --cpus, --cpuset-cpus, --pids-limit) are not enforced: "+f.runner.Facts.CgroupErr)
	}
	if f.runner.Choice.SharePids || f.runner.Choice.Lacks != 0 {
		all = append(all, "WARNING: rung "+f.runner.Choice.Name()+": "+f.runner.Choice.Why)
	}
	return all
}

// registries are what docker info prints of them.
func (f facts) registries() *registrytypes.ServiceConfig {
	hub := &registrytypes.IndexInfo{Name: "docker.io", Mirrors: f.den.options.Mirrors, Secure: true, Official: true}
	if hub.Mirrors == nil {
		hub.Mirrors = []string{}
	}
	c := &registrytypes.ServiceConfig{IndexConfigs: map[string]*registrytypes.IndexInfo{"docker.io": hub}, Mirrors: hub.Mirrors, InsecureRegistryCIDRs: loopback()}
	for _, host := range f.den.options.Insecure {
		if p, ok := prefix(host); ok {
			c.InsecureRegistryCIDRs = append(c.InsecureRegistryCIDRs, p)
			continue
		}
		c.IndexConfigs[host] = &registrytypes.IndexInfo{Name: host, Mirrors: []string{}}
	}
	return c
}

// openFiles counts this process's descriptors.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// operatingSystem is the outer container's own name for itself.
func operatingSystem() string {
	text, err := os.ReadFile("/etc/os-release")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`) + " (containerized)"
			}
		}
	}
	return "den (containerized)"
}

// machine is uname's, as docker says it: x86_64, aarch64.
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// memTotal is what this container may have, in bytes.
func memTotal() int64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	total := int64(uint64(s.Totalram) * uint64(s.Unit))
	if limit := probe.MemoryLimit(); limit > 0 {
		return min(total, limit)
	}
	return total
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// sentence is an answer in docker's form.
func sentence(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(common.ErrorResponse{Message: message}) // the client may be gone
}

// logger takes what no client asked for: what is worth knowing is a notice.
func logger(o Options) *slog.Logger { return slog.New(&noticeHandler{o: o}) }

type noticeHandler struct {
	o     Options
	attrs []slog.Attr
}

// Enabled takes everything.
func (h *noticeHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle writes a line.
func (h *noticeHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	add := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%q", a.Key, a.Value.String())
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if r.Level >= slog.LevelInfo {
		h.o.Notice(b.String())
	} else {
		h.o.Debug(b.String())
	}
	return nil
}

// WithAttrs is slog.Handler's.
func (h *noticeHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &noticeHandler{o: h.o, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup is slog.Handler's; groups are not told apart.
func (h *noticeHandler) WithGroup(string) slog.Handler { return h }

// loopback is what docker speaks plain HTTP with unasked.
func loopback() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")}
}

func prefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}
