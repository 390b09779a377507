package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"testing"
)

// What docs/security.md says of networks: a container reaches the loopback addresses around den only where a gateway
// in user space leads there, unless that is switched off; no other network; and, by such a gateway, not the
// addresses where clouds give credentials away. On every driver it reaches the API on a TCP port as it does anything else there.
func TestContainersReachWhatTheDriverSays(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	around := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("around")) })}
	go func() { _ = around.Serve(l) }()
	t.Cleanup(func() { around.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
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
		if got := ask(s, "http://around:"+port+"/"); got != gateway {
			t.Errorf("driver %s: a listener on the loopback device around den answers: %t", said.Network.Name, got)
		}
		if gateway && ask(s, "http://169.254.169.254/") {
			t.Errorf("driver %s leads to link-local addresses", said.Network.Name)
		}
		closed := serveAPI(t, d, "--disable-host-loopback", "--data-root", d.dir(files{})).withSmall()
		if ask(closed, "http://around:"+port+"/") {
			t.Errorf("driver %s: it answers though that is switched off", said.Network.Name)
		}
	})
}
