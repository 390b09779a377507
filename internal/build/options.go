package build

import (
	"encoding/csv"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/go-units"

	"den/internal/build/dockerfile"
)

// invalid is a mistake on the command line.
func invalid(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// usageError keeps the class out of the text.
type usageError struct{ err error }

func (e *usageError) Error() string   { return e.err.Error() }
func (e *usageError) Unwrap() []error { return []error{errdefs.ErrInvalidArgument, e.err} }

// frontendOptions translates the request into the options of BuildKit's
// frontend (frontend/dockerui/config.go), all but the contexts.
func (b *Builder) frontendOptions(r *Request) (map[string]string, error) {
	opts := map[string]string{}
	steps := []func(*Request, map[string]string) error{
		buildArgs, labels, cacheOptions, platformOption, networkOption,
		b.addHosts, limits, callOption,
	}
	for _, step := range steps {
		if err := step(r, opts); err != nil {
			return nil, err
		}
	}
	if r.Target != "" {
		opts["target"] = r.Target
	}
	return opts, nil
}

// epochArg is the build arg that docker and buildx take from their own
// environment.
const epochArg = "SOURCE_DATE_EPOCH"

func buildArgs(r *Request, opts map[string]string) error {
	args := map[string]string{}
	for _, arg := range r.BuildArgs {
		k, v, ok := strings.Cut(arg, "=")
		if k == "" {
			return invalid("invalid key-value pair %q: empty key", arg)
		}
		if !ok {
			if v, ok = r.lookupEnv(k); !ok {
				continue
			}
		}
		args[k] = v
	}
	if _, ok := args[epochArg]; !ok && r.env(epochArg) != "" {
		args[epochArg] = r.env(epochArg)
	}
	proxies, err := proxyArgs(r, args)
	if err != nil {
		return err
	}
	maps.Copy(args, proxies)
	for k, v := range args {
		opts["build-arg:"+k] = v
	}
	return nil
}

func labels(r *Request, opts map[string]string) error {
	for _, l := range r.Labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return invalid("invalid label %q: empty key", l)
		}
		opts["label:"+k] = v
	}
	return nil
}

func cacheOptions(r *Request, opts map[string]string) error {
	if r.NoCache && len(r.NoCacheFilter) > 0 {
		return invalid("--no-cache and --no-cache-filter cannot currently be used together")
	}
	if r.NoCache {
		opts["no-cache"] = ""
	}
	if len(r.NoCacheFilter) > 0 {
		opts["no-cache"] = strings.Join(r.NoCacheFilter, ",")
	}
	opts["image-resolve-mode"] = "local"
	if r.Pull {
		opts["image-resolve-mode"] = "pull"
	}
	return nil
}

func platformOption(r *Request, opts map[string]string) error {
	list := splitList(r.Platforms)
	if len(list) == 0 {
		list = splitList([]string{r.env("DOCKER_DEFAULT_PLATFORM")})
	}
	if len(list) == 0 {
		return nil
	}
	var seen []string
	for _, s := range list {
		p := platforms.DefaultSpec()
		if s != "local" {
			var err error
			if p, err = platforms.Parse(s); err != nil {
				return invalid("platform %q: %w", s, err)
			}
		}
		id := platforms.FormatAll(platforms.Normalize(p))
		if !slices.Contains(seen, id) {
			seen = append(seen, id)
		}
	}
	opts["platform"] = strings.Join(seen, ",")
	return nil
}

func splitList(values []string) []string {
	var out []string
	for _, v := range values {
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

func networkOption(r *Request, opts map[string]string) error {
	switch r.Network {
	case "", "default":
	case "host", "none":
		opts["force-network-mode"] = r.Network
	default:
		return invalid("network mode %q is not supported for builds, want default, host or none", r.Network)
	}
	return nil
}

// entitlements are what steps may ask for. A build with --network=host was
// allowed it by that.
func entitlements(r *Request) ([]string, error) {
	var out []string
	for _, a := range splitList(r.Allow) {
		switch {
		case a == "network.host", a == "security.insecure":
			out = append(out, a)
		case a == "fs" || strings.HasPrefix(a, "fs=") || strings.HasPrefix(a, "fs."):
			// buildx asks its user before a bake file reads outside of the
			// context; den reads what its own command line names.
		case a == "device" || strings.HasPrefix(a, "device="):
			return nil, fmt.Errorf("allow %q: den has no device support: %w", a, errdefs.ErrNotImplemented)
		default:
			return nil, invalid("allow %q: unknown entitlement, want network.host or security.insecure", a)
		}
	}
	if r.Network == "host" {
		out = append(out, "network.host")
	}
	return out, nil
}

// addHosts replaces host-gateway and joins the hosts as the frontend wants
// them.
func (b *Builder) addHosts(r *Request, opts map[string]string) error {
	var out []string
	for _, h := range r.AddHosts {
		host, ip, ok := strings.Cut(h, "=")
		if !ok {
			host, ip, ok = strings.Cut(h, ":")
		}
		if !ok || host == "" || ip == "" {
			return invalid("invalid host %q, want host:ip", h)
		}
		if ip == "host-gateway" {
			ip = b.hostGateway().String()
		}
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if net.ParseIP(ip) == nil {
			return invalid("invalid host %q: %q is not an IP address", h, ip)
		}
		out = append(out, host+"="+ip)
	}
	if len(out) > 0 {
		opts["add-hosts"] = joinCSV(out)
	}
	return nil
}

// hostGateway is the address at which a step reaches the machine that den runs
// on. Steps share its network, so that is its own loopback unless told.
func (b *Builder) hostGateway() netip.Addr {
	if b.o.HostGateway.IsValid() {
		return b.o.HostGateway
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func limits(r *Request, opts map[string]string) error {
	if r.ShmSize != "" {
		n, err := units.RAMInBytes(r.ShmSize)
		if err != nil || n < 0 {
			return invalid("shm-size %q is not a size", r.ShmSize)
		}
		opts["shm-size"] = strconv.FormatInt(n, 10)
	}
	var ulimits []string
	for _, u := range r.Ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return invalid("ulimit %q: %w", u, err)
		}
		ulimits = append(ulimits, l.String())
	}
	if len(ulimits) > 0 {
		opts["ulimit"] = joinCSV(ulimits)
	}
	if r.CgroupParent != "" {
		opts["cgroup-parent"] = r.CgroupParent
	}
	return nil
}

// callOption turns a call into a sub-request.
func callOption(r *Request, opts map[string]string) error {
	method, _, err := parseCall(r.Call)
	if err != nil || method == "" {
		return err
	}
	opts["requestid"] = method
	opts["frontend.caps"] = "moby.buildkit.frontend.subrequests+forward"
	return nil
}

// parseCall returns the sub-request of a call, empty for a build, and the
// format of its answer.
func parseCall(call string) (method, format string, err error) {
	fields, err := splitCSV(call)
	if err != nil {
		return "", "", invalid("call %q: %w", call, err)
	}
	name := ""
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		switch {
		case !ok && name == "":
			name = f
		case k == "format" && (v == "json" || v == "text"):
			format = v
		default:
			return "", "", invalid("call %q: unexpected %q", call, f)
		}
	}
	switch name {
	case "", "build":
		return "", "", nil
	case "check", "lint":
		return dockerfile.RequestLint, format, nil
	case "outline":
		return dockerfile.RequestOutline, format, nil
	case "targets":
		return dockerfile.RequestTargets, format, nil
	}
	return "", "", invalid("call %q is not known, want build, check, outline or targets", name)
}

func splitCSV(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	c := csv.NewReader(strings.NewReader(s))
	c.FieldsPerRecord = -1
	fields, err := c.Read()
	if err != nil {
		return nil, err
	}
	if _, err := c.Read(); err == nil {
		return nil, fmt.Errorf("more than one line")
	}
	return fields, nil
}

func joinCSV(fields []string) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	// A strings.Builder takes everything.
	_ = w.Write(fields)
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n")
}
