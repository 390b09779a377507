package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// servicesArchive is an image of PostgreSQL, redis and nginx, of Debian's packages.
func servicesArchive(t *testing.T) string {
	t.Helper()
	file := filepath.Join(env.cache, "services.tar")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	d := newDen(t)
	ctx := d.dir(files{"Dockerfile": `FROM @debian
RUN echo 'create_main_cluster = false' > /etc/pg.conf && apt-get -qq update && mkdir -p /etc/postgresql-common && cp /etc/pg.conf /etc/postgresql-common/createcluster.conf \
    && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends postgresql redis-server nginx-light >/dev/null && rm -rf /var/lib/apt/lists/* /var/cache/apt
RUN mkdir -p /data && chown postgres:postgres /data
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
`})
	d.run("build", "-q", "-t", "services:latest", ctx)
	d.run("save", "-o", file+".part", "services:latest")
	if err := os.Rename(file+".part", file); err != nil {
		t.Fatal(err)
	}
	return file
}

const postgres = `sh -c 'test -e /data/db/PG_VERSION || initdb -D /data/db -A trust >/dev/null && echo "host all all all trust" >> /data/db/pg_hba.conf; exec postgres -D /data/db -c listen_addresses=\* -c cluster_name=$HOSTNAME'`

// Real services run side by side, on the same ports, reach each other by name, answer on published ports, and
// find their data again.
func TestRealServices(t *testing.T) {
	t.Parallel()
	needDebian(t)
	needRoot(t)
	archive := servicesArchive(t)
	everyServe(t, func(t *testing.T, e *engine) {
		e.must(t, "docker load -q -i "+archive+" && docker network create back")
		for _, name := range []string{"one", "two"} {
			e.must(t, "docker run -d --name "+name+" -h "+name+" --network back -u postgres -v "+name+":/data -p 127.0.0.1::5432 services "+postgres)
		}
		ready := "for i in $(seq 300); do docker exec one psql -h %[1]s -U postgres -Atc 'show cluster_name' 2>/dev/null && exit; sleep 0.1; done; docker logs %[1]s; exit 1"
		for _, name := range []string{"one", "two"} {
			equal(t, "who answers as "+name, name+"\n", e.must(t, strings.ReplaceAll(ready, "%[1]s", name)))
		}
		e.must(t, `docker exec one psql -h two -U postgres -c 'create table t as select generate_series(1, 1000) n'`)
		for _, name := range []string{"one", "two"} { // PostgreSQL says N to a client that asks for SSL
			equal(t, "the published port of "+name, "N", e.must(t, `port=$(docker port `+name+` 5432 | sed 's/.*://'); printf '\0\0\0\10\4\322\26\57' | timeout 10 busybox nc 127.0.0.1 $port | head -c 1`))
		}
		e.must(t, "docker restart two")
		equal(t, "who answers again", "two\n", e.must(t, strings.ReplaceAll(ready, "%[1]s", "two")))
		equal(t, "rows that are kept", "1000\n", e.must(t, "docker exec two psql -U postgres -Atc 'select count(*) from t'"))

		e.must(t, "docker run -d --name cache --network back services redis-server --bind 0.0.0.0 --protected-mode no --save ''")
		equal(t, "redis", "PONG\n", e.must(t, "for i in $(seq 100); do docker exec one true; docker exec cache redis-cli -h cache ping 2>/dev/null && exit; sleep 0.1; done; exit 1"))
		e.must(t, `docker run -d --name web --network back -p 127.0.0.1:18095:80 services sh -c 'echo served > /var/www/html/index.html; rm -f /etc/nginx/modules-enabled/*; exec nginx -g "daemon off;"'`)
		equal(t, "nginx", "served\n", e.must(t, "for i in $(seq 100); do wget -q -O - http://127.0.0.1:18095/index.html && exit; sleep 0.1; done; docker logs web; exit 1"))
		e.must(t, "docker rm -f one two cache web && docker volume rm one two && docker network rm back")
	})
}
