package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestDockerConnectsContainersByNetworks(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d).withSmall()
		if s.docker("network", "ls", "-q", "--filter", "driver=bridge") == "" {
			t.Skip("needs networks on this rung")
		}
		s.docker("network", "create", "--label", "a=b", "n1")
		s.docker("network", "create", "n2")
		s.docker("run", "-d", "--name", "web", "--network", "n1", "--network-alias", "al", "-p", "127.0.0.1::80",
			"small", "httpd", "-f", "-p", "80", "-h", "/etc")
		address := s.docker("port", "web", "80/tcp")
		if _, _, err := net.SplitHostPort(address); err != nil {
			t.Fatalf("port says %q: %v", address, err)
		}
		if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			l.Close()
			s.docker("run", "-d", "--name", "six", "--network", "n1", "-p", "[::1]::80", "small", "httpd", "-f", "-p", "80", "-h", "/etc")
			at := s.docker("port", "six", "80/tcp")
			s.eventually("the port of IPv6 answers at "+at, func() bool { return strings.HasPrefix(get(at, "/group"), "root:") })
			s.docker("rm", "-f", "six")
		}
		s.eventually("the published port answers", func() bool { return strings.HasPrefix(get(address, "/group"), "root:") })
		for _, name := range []string{"web", "al"} {
			if out := s.docker("run", "--rm", "--network", "n1", "small", "wget", "-qO-", "http://"+name+"/group"); !strings.HasPrefix(out, "root:") {
				t.Errorf("%s answers %q", name, out)
			}
		}
		if r := s.tryDocker(nil, "run", "--rm", "--network", "n2", "small", "timeout", "5", "wget", "-qO-", "http://web/group"); r.code == 0 {
			t.Errorf("a container of another network is answered: %q", r.out)
		}
		s.docker("network", "connect", "--alias", "other", "n2", "web")
		if out := s.docker("run", "--rm", "--network", "n2", "small", "wget", "-qO-", "http://other/group"); !strings.HasPrefix(out, "root:") {
			t.Errorf("connected while it runs, it answers %q", out)
		}
		if out := s.docker("network", "inspect", "n2", "-f", "{{range .Containers}}{{.Name}}{{end}}"); out != "web" {
			t.Errorf("n2 has %q", out)
		}
		s.refused("has active endpoints", "network", "rm", "n1")
		s.docker("network", "disconnect", "n2", "web")
		s.docker("network", "rm", "n2")
		s.docker("rm", "-f", "web")
		if out := s.docker("network", "prune", "-f", "--filter", "label=a=b"); !strings.Contains(out, "n1") {
			t.Errorf("prune says %q", out)
		}
	})
}

// get is what a server answers; "" if it does not.
func get(address, path string) string {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(fmt.Sprintf("http://%s%s", address, path))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}
