package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// databasesImage is a Debian with three databases of its own packages, and without a
// cluster of PostgreSQL, which a volume is to hold.
var databasesImage = once(func() (string, error) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", errMissing("mmdebstrap")
	}
	if os.Geteuid() != 0 {
		return "", errMissing("root for mmdebstrap")
	}
	file, part := filepath.Join(env.cache, "databases.tar"), filepath.Join(env.cache, "databases.part.tar")
	if _, err := os.Stat(file); err != nil {
		args := []string{"--quiet", "--variant=minbase", "--include=postgresql,mariadb-server,redis-server",
			`--essential-hook=mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"`}
		for _, unused := range []string{"doc", "man", "locale"} {
			args = append(args, "--dpkgopt=path-exclude=/usr/share/"+unused+"/*")
		}
		if b, err := exec.Command("mmdebstrap", append(args, "bookworm", part, debianArchive)...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("mmdebstrap: %w\n%s", err, b)
		}
		if err := os.Rename(part, file); err != nil {
			return "", err
		}
	}
	return pushBase("e2e/databases", containerConfig{Env: []string{basePath + ":/usr/lib/postgresql/15/bin", "LC_ALL=C.UTF-8"}, Cmd: []string{"bash"}}, file)
})

// A database is a server with its files in /data/db, run as images of it do: root
// prepares the volume and the server's own user does the rest. PORT is replaced.
type database struct {
	name, user         string
	prepare, serve     string // as its user
	ready, read, write string // of a client in another container
	file               string // one of the server's, with mode and owner
}

var databases = []database{
	{
		name: "postgres", user: "postgres", file: "PG_VERSION 600 postgres:postgres",
		prepare: "initdb -N -A trust -D /data/db >/dev/null",
		serve:   "postgres -D /data/db -h 127.0.0.1 -p PORT -k /tmp",
		ready:   "pg_isready -q -h 127.0.0.1 -p PORT",
		write:   `psql -qAt -h 127.0.0.1 -p PORT -U postgres -c "create table t (x int); insert into t values (42)"`,
		read:    `psql -qAt -h 127.0.0.1 -p PORT -U postgres -c "select x from t"`,
	},
	{
		name: "mariadb", user: "mysql", file: "ibdata1 660 mysql:mysql",
		prepare: "mariadb-install-db --no-defaults --auth-root-authentication-method=normal --skip-test-db --datadir=/data/db >/dev/null",
		serve:   "mariadbd --no-defaults --datadir=/data/db --socket=/tmp/s --bind-address=127.0.0.1 --port=PORT --innodb-buffer-pool-size=32M",
		ready:   `mariadb --no-defaults -h 127.0.0.1 -P PORT -u root -e "select 1" >/dev/null`,
		write:   `mariadb --no-defaults -h 127.0.0.1 -P PORT -u root -e "create database d; create table d.t (x int); insert into d.t values (42)"`,
		read:    `mariadb --no-defaults -h 127.0.0.1 -P PORT -u root -N -e "select x from d.t"`,
	},
	{
		name: "redis", user: "redis", file: "dump.rdb 660 redis:redis",
		prepare: "true",
		serve:   `redis-server --dir /data/db --bind 127.0.0.1 --port PORT --save "3600 1"`,
		ready:   "redis-cli -h 127.0.0.1 -p PORT ping | grep -q PONG",
		write:   "redis-cli -h 127.0.0.1 -p PORT set x 42 >/dev/null",
		read:    "redis-cli -h 127.0.0.1 -p PORT get x",
	},
}

// script starts db on a fresh volume, fills it, stops it, and starts it on that volume again. It
// prints what a client reads and what another container sees in the volume.
func (db database) script(image, port string) string {
	server := `set -e; umask 007; as="setpriv --reuid ` + db.user + ` --regid ` + db.user + ` --init-groups --no-new-privs"
[ -d /data/db ] || { mkdir -m 0700 /data/db; chown ` + db.user + `: /data/db; $as ` + db.prepare + `; }; exec $as ` + db.serve
	return strings.NewReplacer("PORT", port, "IMAGE", image, "NAME", db.name, "FILE", strings.Fields(db.file)[0]).Replace(`
client() { den run --rm IMAGE bash -c "$1"; }
start() {
	den run -d --name NAME -v NAME:/data IMAGE bash -c '` + server + `' >/dev/null
	for i in $(seq 100); do
		client '` + db.ready + `' >/work/NAME.err 2>&1 && return
		den ps -q | grep -q . || break
		sleep 0.5
	done
	cat /work/NAME.err >&2; den logs NAME >&2; exit 1
}
end() {
	den stop -t 60 NAME >/dev/null
	den rm NAME >/dev/null
	den run --rm -v NAME:/data IMAGE stat -c '%n %a %U:%G' /data/db /data/db/FILE
}
start; client '` + db.write + `'; end
start; client '` + db.read + `'; end
`)
}

// Databases give their files to users of their own and insist on them. den, a user without a
// capability, keeps those owners beside the files of a volume.
func TestDatabasesRunInARestrictedContainer(t *testing.T) {
	t.Parallel()
	needDebian(t)
	docker := needDockerd(t)
	image := databasesImage(t)
	restricted := outerKinds[slices.IndexFunc(outerKinds, func(k outerKind) bool { return k.name == "restricted" })]
	o := restricted.outer(t, docker)
	if _, err := o.sh("den pull -q " + image); err != nil { // once, for all of them
		t.Fatal(err)
	}
	for _, db := range databases {
		t.Run(db.name, func(t *testing.T) {
			t.Parallel()
			addr, err := freeAddr()
			if err != nil {
				t.Fatal(err)
			}
			_, port, _ := strings.Cut(addr, ":")
			out, err := o.sh(db.script(image, port))
			if err != nil {
				t.Fatal(err)
			}
			owners := fmt.Sprintf("/data/db 700 %s:%[1]s\n/data/db/%s\n", db.user, db.file)
			equal(t, "what clients and other containers see", owners+"42\n"+owners, out)
		})
	}
}
