package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"testing"
)

// around answers every request at a port of an address around den.
func around(t *testing.T, address string) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("around")) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	if _, port, err = net.SplitHostPort(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return port
}

// What docs/security.md says of networks: a container reaches what listens on every address around den by host-gateway, and its
// loopback addresses only where a gateway in user space leads there and that was asked for; no other network; and, by such a gateway,
// not the addresses where clouds give credentials away. On every driver it reaches the API on a TCP port as it does anything else there.
func TestContainersReachWhatTheDriverSays(t *testing.T) {
	t.Parallel()
	loopback, everywhere := around(t, "127.0.0.1"), around(t, "0.0.0.0")
	everyRung(t, func(t *testing.T, d *den) {
		r := d.try(nil, "doctor", "--format", "json")
		var said diagnosis
		if err := json.Unmarshal([]byte(r.out), &said); err != nil {
			t.Fatalf("%v in %s%s", err, r.out, r.err)
		}
		gateway := said.Network.Name == "userns" || said.Network.Name == "switch"
		if !gateway && said.Network.Name != "bridge" {
			t.Skip("needs networks on this rung: ", said.Network.Name)
		}
		ask := func(s *engineAPI, url string) bool {
			t.Helper()
			r := s.tryDocker(nil, "run", "--rm", "--add-host=around:host-gateway", "small", "timeout", "5", "wget", "-qO-", url)
			if r.code > 1 && r.code != 143 && r.code != 124 {
				t.Errorf("wget %s: exit %d %s", url, r.code, r.err)
			}
			return r.code == 0
		}
		s := serveAPI(t, d).withSmall()
		if !ask(s, "http://around:"+everywhere+"/") {
			t.Errorf("driver %s: a listener on all addresses around den does not answer", said.Network.Name)
		}
		if ask(s, "http://around:"+loopback+"/") {
			t.Errorf("driver %s: a listener on the loopback device around den answers", said.Network.Name)
		}
		if gateway && ask(s, "http://169.254.169.254/") {
			t.Errorf("driver %s leads to link-local addresses", said.Network.Name)
		}
		open := serveAPI(t, d, "--disable-host-loopback=false", "--data-root", d.dir(files{})).withSmall()
		if got := ask(open, "http://around:"+loopback+"/"); got != gateway {
			t.Errorf("driver %s: a listener on the loopback device around den answers, as was asked for: %t", said.Network.Name, got)
		}
	})
}
