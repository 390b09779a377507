package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"den/internal/oci"

	"github.com/containerd/errdefs"
)

const (
	maxConfigFileBytes = 1 << 20
	systemDaemonJSON   = "/etc/docker/daemon.json"
)

// daemonConfig is the part of dockerd's daemon.json that concerns registries.
type daemonConfig struct {
	Mirrors  []string `json:"registry-mirrors"`
	Insecure []string `json:"insecure-registries"`
}

// loadDaemonConfig reads daemon.json. That the default file is missing or
// unreadable is no error, but damage is told.
func (s *shared) loadDaemonConfig() daemonConfig {
	file, named := s.o.DaemonJSON, true
	if file == "" {
		file, named = systemDaemonJSON, false
	}
	var c daemonConfig
	data, err := readFile(file)
	if err == nil {
		err = json.Unmarshal(data, &c)
	} else if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return c
	}
	if err != nil {
		s.notice("registry configuration %s is ignored: %v", file, err)
		return daemonConfig{}
	}
	return c
}

// readFile reads a configuration file of bounded size.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFileBytes+1))
	if err == nil && len(data) > maxConfigFileBytes {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, oci.ErrTooLarge, maxConfigFileBytes)
	}
	return data, err
}

// A mirror is asked before the registry of its domain.
type mirror struct {
	domain string // "docker.io"
	scheme string // "http", "https", or empty: as for any host
	host   string
	prefix string // of repositories, or empty
}

// parseMirror parses "[DOMAIN=][http[s]://]HOST[/PREFIX]".
func parseMirror(s string) (mirror, error) {
	m := mirror{domain: oci.DockerHub}
	rest := strings.TrimSpace(s)
	if domain, after, ok := strings.Cut(rest, "="); ok {
		m.domain, rest = canonicalHost(domain), after
	}
	if scheme, after, ok := strings.Cut(rest, "://"); ok {
		m.scheme, rest = strings.ToLower(scheme), after
	}
	rest = strings.Trim(rest, "/")
	m.host, m.prefix, _ = strings.Cut(rest, "/")
	m.prefix = strings.TrimPrefix(strings.TrimPrefix(m.prefix, "v2/"), "v2")
	bad := m.scheme != "" && m.scheme != "http" && m.scheme != "https" ||
		!validHost(m.host) || !validHost(m.domain)
	if !bad && m.prefix != "" {
		_, err := oci.ParseName(m.host + "/" + m.prefix + "/x")
		bad = err != nil
	}
	if bad {
		return m, fmt.Errorf("registry mirror %q: want [HOST=][https://]MIRROR[/PREFIX]: %w", s, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// validHost reports whether s is a host with an optional port.
func validHost(s string) bool {
	u, err := url.Parse("//" + s)
	return err == nil && s != "" && u.Host == s && u.Hostname() != "" && !strings.Contains(s, "..")
}

// mirrorsOf lists the mirrors of a domain: the options' first, then the
// variable's, then the file's.
func (s *shared) mirrorsOf(domain string) []mirror {
	list := append([]string{}, s.o.Mirrors...)
	list = append(list, splitList(s.o.Env("DEN_MIRROR"))...)
	list = append(list, s.daemon().Mirrors...)
	var out []mirror
	seen := map[mirror]bool{}
	for _, item := range list {
		m, err := parseMirror(item)
		if err != nil { // New refuses those of the options
			s.noticeOnce("%v", err)
			continue
		}
		if m.domain == domain && !seen[m] {
			seen[m] = true
			out = append(out, m)
		}
	}
	return out
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == ';' || r == '\n' })
}

// hostList is a list of hosts that something is allowed to.
type hostList struct {
	hosts map[string]bool // false: excepted
	nets  []netip.Prefix
	all   bool
}

// parseHosts reads hosts, networks, "*" and "!HOST"; what names the list in errors.
func parseHosts(what string, items []string) (hostList, error) {
	l := hostList{hosts: map[string]bool{}}
	var errs []error
	for _, item := range items {
		item = strings.TrimSpace(item)
		if item == "*" {
			l.all = true
			continue
		}
		if p, err := netip.ParsePrefix(item); err == nil {
			l.nets = append(l.nets, p.Masked())
			continue
		}
		item, excepted := strings.CutPrefix(item, "!")
		item = strings.TrimPrefix(strings.TrimPrefix(item, "https://"), "http://")
		item = strings.Trim(item, "/")
		if !validHost(item) {
			errs = append(errs, fmt.Errorf("%s %q: want HOST[:PORT] or a network: %w", what, item, errdefs.ErrInvalidArgument))
			continue
		}
		if host := canonicalHost(item); !excepted || !l.hosts[host] {
			l.hosts[host] = !excepted
		}
	}
	return l, errors.Join(errs...)
}

// contains reports whether host or one of its addresses is on the list.
func (l hostList) contains(host string, addrs []net.IPAddr) bool {
	if listed, known := l.hosts[canonicalHost(host)]; known {
		return listed
	}
	if l.all {
		return true
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		for _, n := range l.nets {
			if n.Contains(ip.Unmap()) {
				return true
			}
		}
	}
	return false
}

// isLoopback reports whether host can only be this machine.
func isLoopback(host string) bool {
	name := hostname(host)
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// hostname is host without port and brackets, in lower case.
func hostname(host string) string {
	return strings.ToLower((&url.URL{Host: host}).Hostname())
}

// canonicalHost is the one name that a registry goes by in files and
// references: without scheme, path and API version, Docker Hub's many as "docker.io".
func canonicalHost(s string) string {
	s = strings.TrimSpace(s)
	if _, after, ok := strings.Cut(s, "://"); ok {
		s = after
	}
	s = strings.TrimRight(s, "/")
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/v1"), "/v2")
	host, path, hasPath := strings.Cut(s, "/")
	host = strings.ToLower(host)
	switch host {
	case "", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		host = oci.DockerHub
	}
	if hasPath {
		return host + "/" + path
	}
	return host
}

// connectHost is where the registry of a domain listens.
func connectHost(domain string) string {
	if domain == oci.DockerHub {
		return "registry-1.docker.io"
	}
	return domain
}

func (s *shared) configDir() string {
	if s.o.ConfigDir != "" {
		return s.o.ConfigDir
	}
	if d := s.o.Env("DOCKER_CONFIG"); d != "" {
		return d
	}
	return filepath.Join(s.home(), ".docker")
}

func (s *shared) home() string {
	if h := s.o.Env("HOME"); h != "" {
		return h
	}
	if os.Geteuid() == 0 {
		return "/root"
	}
	return "/"
}
