package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two den serve on one store are two engines: the same names are other containers and networks, which do not reach each
// other, and whose subnets and ports do not collide.
func TestTwoServersOnOneStoreAreTwoEngines(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		a := serveAPI(t, d, "--data-root", filepath.Join(d.home, "a"))
		b := serveAPI(t, d, "--data-root", filepath.Join(d.home, "b"))
		if a.withSmall().docker("network", "ls", "-q", "--filter", "driver=bridge") == "" {
			t.Skip("needs networks on this rung")
		}
		b.withSmall()
		address := map[*engineAPI]string{}
		for s, page := range map[*engineAPI]string{a: "a", b: "b"} {
			s.docker("network", "create", "app")
			// Reached on the default network by its port, and on the other by its name.
			s.docker("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "small", "sh", "-c", "echo "+page+" > /tmp/page; httpd -f -p 80 -h /tmp")
			s.docker("network", "connect", "app", "web")
			address[s] = s.docker("inspect", "-f", "{{.NetworkSettings.Networks.app.IPAddress}}", "web")
			at := s.docker("port", "web", "80/tcp")
			s.eventually("the published port answers", func() bool { return get(at, "/page") == page+"\n" })
			if out := s.docker("run", "--rm", "--network", "app", "small", "wget", "-qO-", "http://web/page"); out != page {
				t.Errorf("engine %s: its own web says %q", page, out)
			}
		}
		for s, other := range map[*engineAPI]*engineAPI{a: b, b: a} {
			if address[other] == address[s] {
				continue // of networks apart, where the address is its own
			}
			if r := s.tryDocker(nil, "run", "--rm", "--network", "app", "small", "wget", "-T", "2", "-qO-", "http://"+address[other]+"/page"); r.code == 0 {
				t.Errorf("a container of the other engine answers: %q", r.out)
			}
		}
		_, port, err := net.SplitHostPort(a.docker("port", "web", "80/tcp"))
		if err != nil {
			t.Fatal(err)
		}
		b.refused("address already in use", "run", "--rm", "-p", "127.0.0.1:"+port+":80", "small", "true")
		for _, s := range []*engineAPI{a, b} {
			s.docker("rm", "-f", "web")
		}
	})
}

// On the rungs whose networks are in den's process, an engine has one den serve.
func TestAnEngineWithoutNamespacesHasOneServer(t *testing.T) {
	t.Parallel()
	d := newSentryDen(t)
	serveAPI(t, d).withSmall()
	dir, err := os.MkdirTemp("", "den-s-")
	if err != nil {
		t.Fatal(err)
	}
	d.own(dir)
	defer os.RemoveAll(dir)
	r := d.try(nil, "serve", "-H", "unix://"+filepath.Join(dir, "d.sock"))
	if r.code == 0 || !strings.Contains(r.err, "--data-root") {
		t.Errorf("a second one: exit %d, want a refusal that names --data-root\n%s", r.code, r.err)
	}
}
