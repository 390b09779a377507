package e2e

import (
	"strings"
	"testing"
)

// Two servers that insist on the same port have addresses of their own, on every rung that has
// networks: also where each is in a sandbox with a network stack of its own.
func TestTwoPostgresServersOnOnePortReachEachOtherByName(t *testing.T) {
	t.Parallel()
	needDebian(t)
	image := databasesImage(t)
	everyRung(t, func(t *testing.T, d *den) {
		s := serveAPI(t, d)
		if s.docker("network", "ls", "-q", "--filter", "driver=bridge") == "" {
			t.Skip("needs networks on this rung")
		}
		s.docker("pull", "-q", image)
		s.docker("network", "create", "app")
		const serve = `initdb -N -A trust -D /tmp/db >/dev/null && echo "host all all all trust" >>/tmp/db/pg_hba.conf &&
exec postgres -D /tmp/db -h '*' -p 5432 -k /tmp -c cluster_name=NAME`
		const who = `select current_setting('cluster_name'), inet_server_port()`
		for _, name := range []string{"one", "two"} {
			s.docker("run", "-d", "--name", name, "--network", "app", "-u", "postgres", "-p", "127.0.0.1::5432",
				image, "bash", "-c", strings.ReplaceAll(serve, "NAME", name))
		}
		query := func(from, host string) string {
			return s.docker("exec", "-u", "postgres", from, "psql", "-h", host, "-U", "postgres", "-Atc", who)
		}
		for _, name := range []string{"one", "two"} {
			s.eventually("PostgreSQL answers in "+name, func() bool {
				return s.tryDocker(nil, "exec", name, "pg_isready", "-q", "-h", "127.0.0.1").code == 0
			})
		}
		equal(t, "two, as one sees it", "two|5432", query("one", "two"))
		equal(t, "one, as two sees it", "one|5432", query("two", "one"))
		// By the port that is published, from a container with the outer network.
		for _, name := range []string{"one", "two"} {
			_, port, _ := strings.Cut(s.docker("port", name, "5432/tcp"), ":")
			got := s.docker("run", "--rm", "--network", "host", image, "psql", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-Atc", who)
			equal(t, "published port of "+name, name+"|5432", got)
		}
	})
}
