package ops

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/oci"
)

// maxEtcBytes bounds what is read of the outer container's own /etc files.
const maxEtcBytes = 1 << 20

// networkFiles are the mounts of /etc/resolv.conf and /etc/hosts.
func (s *step) networkFiles(ctx context.Context, hostname string) ([]oci.Mount, error) {
	resolv := s.env.ResolvConf
	if resolv == nil {
		var err error
		if resolv, err = memoise(s.env, "resolv.conf", func() ([]byte, error) { return readEtc("/etc/resolv.conf") }); err != nil {
			return nil, err
		}
	}
	hosts, err := s.hosts(hostname)
	if err != nil {
		return nil, err
	}
	var out []oci.Mount
	for _, f := range []struct {
		target string
		data   []byte
	}{
		{"/etc/resolv.conf", resolv},
		{"/etc/hosts", hosts},
	} {
		m, err := s.fileMount(ctx, f.target, f.data, madeOwner{mode: 0o644})
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// hosts is the /etc/hosts of a step: its own name, what the build adds, and
// what the outer container knows as long as the step shares its network, such as
// the services that a CI runner put there.
func (s *step) hosts(hostname string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostname)
	for _, h := range s.op.Meta.ExtraHosts {
		ip, err := s.env.hostIP(h)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, h.Host)
	}
	if s.op.Network == pb.NetMode_NONE {
		return b.Bytes(), nil
	}
	outer, err := memoise(s.env, "hosts", func() ([]byte, error) {
		data, err := readEtc("/etc/hosts")
		return foreignHosts(data), err
	})
	if err != nil {
		return nil, err
	}
	b.Write(outer)
	return b.Bytes(), nil
}

func (e *Env) hostIP(h *pb.HostIP) (string, error) {
	if h.IP == "host-gateway" && e.HostGateway.IsValid() {
		return e.HostGateway.String(), nil
	}
	ip := net.ParseIP(h.IP)
	if ip == nil || h.Host == "" || strings.ContainsAny(h.Host, " \t\r\n") {
		return "", fmt.Errorf("extra host %q=%q: not a name and an address: %w", h.Host, h.IP, errdefs.ErrInvalidArgument)
	}
	return ip.String(), nil
}

// foreignHosts are the lines of a hosts file about other machines.
func foreignHosts(data []byte) []byte {
	var out []byte
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		text, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(text)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip == ipv6Local ||
			slices.Contains(f[1:], "localhost") {
			continue
		}
		out = fmt.Appendf(out, "%s\t%s\n", ip, strings.Join(f[1:], " "))
	}
	return out
}

// ipv6Local is the line "fe00::0 ip6-localnet" that distributions ship.
var ipv6Local = netip.MustParseAddr("fe00::")

// readEtc reads one of den's own files; a missing one is empty.
func readEtc(name string) ([]byte, error) {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return []byte{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(&boundedReader{r: f, left: maxEtcBytes, name: name})
}
