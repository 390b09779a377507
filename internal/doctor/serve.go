package doctor

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// Kernel settings that an outer container can be given.
const (
	routes   = "net.ipv4.ip_forward=1"
	lowPorts = "net.ipv4.ip_unprivileged_port_start=0"
)

// networkCheck is about the networks of den serve's containers.
func networkCheck(in Input) Check {
	c := Check{ID: "network", Area: areaRung, Status: OK, Text: in.Network.Name + ": " + in.Network.Why}
	if in.ChoiceErr != nil {
		c.Status = Note
		return c
	}
	if in.Network.Better == "" {
		return c
	}
	if in.Choice.Rung == sandbox.RungSentry || in.Choice.Enter {
		return c // a better rung has the better network
	}
	c.Status = Note
	if in.Choice.Rung == sandbox.RungChroot {
		return c
	}
	c.Fix = toBetterNetwork(in)
	return c
}

// toBetterNetwork is what den lacks for it on a rung where it makes namespaces as it is; nil where it is
// none of what an outer container can be given.
func toBetterNetwork(in Input) *Fix {
	var s setting
	for _, c := range []struct {
		n    int
		name string
	}{{unix.CAP_NET_ADMIN, "NET_ADMIN"}, {unix.CAP_NET_RAW, "NET_RAW"}} {
		if !in.Facts.CapEff.Has(c.n) {
			s.caps = append(s.caps, c.name)
		}
	}
	f := in.Networks.Facts
	switch {
	case len(s.caps) > 0:
	case f.Namespaces == nil && f.Rules == nil && f.Forwarding != nil:
		s.sysctl = routes
	default:
		return nil
	}
	return s.fix()
}

// serveChecks say whether den serve would get its socket, and containers their ports.
func serveChecks(in Input) []Check {
	l := []Check{socketCheck(in)}
	p := in.Networks.Ports
	c := Check{ID: "serve.ports", Area: areaServe, Status: OK, Text: "published ports are opened on the addresses of the container around den, also below 1024"}
	switch {
	case p.TCP != nil:
		c.Status, c.Text = Short, fmt.Sprintf("no TCP port can be published: %v", p.TCP)
	case p.UDP != nil:
		c.Status, c.Text = Short, fmt.Sprintf("no UDP port can be published: %v", p.UDP)
	case p.Low != nil:
		c.Status, c.Text = Note, fmt.Sprintf("published ports are opened on the addresses of the container around den, but none below 1024: %v", p.Low)
		c.Fix = setting{sysctl: lowPorts}.fix()
	}
	return append(l, c)
}

func socketCheck(in Input) Check {
	s := in.Serve
	c := Check{ID: "serve.socket", Area: areaServe, Status: OK, Text: s.Socket + " is free"}
	switch {
	case s.Err != nil:
		c.Status = Note
		c.Text = fmt.Sprintf("den serve cannot listen where it does by itself: %v; --host names another place", s.Err)
		c.Fix = setting{tmpfs: filepath.Dir(s.Socket)}.fix()
	case s.InUse:
		c.Text = s.Socket + " answers: a daemon is there"
	}
	return c
}
