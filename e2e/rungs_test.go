package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
)

// currentProfile is moby's newest default seccomp profile: that of this machine's
// dockerd may be years older.
var currentProfile = once(func() (string, error) {
	b, err := json.Marshal(seccomp.DefaultProfile())
	if err != nil {
		return "", err
	}
	file := filepath.Join(env.cache, "seccomp.json")
	return file, os.WriteFile(file, b, 0o644)
})

// hardened is what Kubernetes calls restricted, in docker's words, but for the user.
var hardened = []string{"--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--pids-limit=512", "--memory=2g"}

// An outerKind is a kind of job container, the rung that den finds in it, and whether the
// current seccomp profile is used instead of dockerd's own.
type outerKind struct {
	name, rung string
	flags      []string
	current    bool
	engine     string // what transcripts call a den serve in it
}

var outerKinds = []outerKind{
	{"plain", "default", nil, true, "sentry"},
	{"restricted", "restricted", append([]string{"--user=1000:1000"}, hardened...), true, "sentry"},
	{"restricted by the old profile", "restricted", append([]string{"--user=1000:1000"}, hardened...), false, "sentry"},
	{"random uid", "restricted", append([]string{"--user=1000670000:0"}, hardened...), true, "sentry"},
	{"user with user namespaces", "restricted", append([]string{"--user=1000:1000"}, unconfined...), false, "sentry"},
	{"nearly privileged", "privileged", capable, false, "privileged"},
}

// outerOf is a container of that kind with a store on a volume.
func (k outerKind) outer(t *testing.T, docker dockerd) outer {
	t.Helper()
	d := newDen(t)
	for _, dir := range []string{d.home, d.store()} { // for any uid
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	flags := append([]string{"-v", d.store() + ":/var/lib/den", "-e", "DEN_STORE=/var/lib/den", "--init"}, k.flags...)
	if k.current {
		flags = append(flags, "--security-opt=seccomp="+currentProfile(t))
	}
	return outer{docker, d, flags}
}

const aptDockerfile = `FROM @debian
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends cron sudo file >/dev/null \
    && rm -rf /var/log/* /var/cache/ldconfig /var/cache/debconf /var/lib/dpkg/*-old /etc/.pwd.lock
RUN useradd -m -s /bin/sh job && echo 'job ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/job && su job -c 'echo mine > ~/mine && test "$(sudo -n id -u)" = 0' \
    && mknod /srv/null c 1 3 && ln /home/job/mine /srv/hard && chown -h 7:8 /etc/localtime && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-
USER job
WORKDIR /home/job
RUN --mount=type=secret,id=s,mode=0444 cat /run/secrets/s > /dev/null && mkdir -m 0700 closed && touch closed/in && id -u > id
COPY --chown=job f /srv/f
`

const manyFiles = 20_000

// fillWork writes the contexts of the jobs.
func fillWork(d *den) {
	d.t.Helper()
	d.fill(d.home, files{
		"apt/Dockerfile": aptDockerfile, "apt/f": "f", "secret": "hush",
		"go/Dockerfile": goDockerfile, "go/go.mod": "module hello.test/app\n\ngo 1.24\n", "go/main.go": "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"built here\") }\n", "go/.dockerignore": "Dockerfile\n",
		"many/Dockerfile": "FROM @small\nCOPY . /many\nRUN find /many -type f | wc -l > /count\n",
	})
	for i := range manyFiles - 1 { // and the Dockerfile
		dir := filepath.Join(d.home, "many", fmt.Sprintf("%03d", i/200))
		if i%200 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				d.t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(fmt.Sprint(i)), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
}

// aptImage is what the privileged den of the host builds; the others are compared with it.
func aptImage(t *testing.T) image {
	t.Helper()
	d := newDen(t)
	d.fill(d.home, files{"apt/Dockerfile": aptDockerfile, "apt/f": "f", "secret": "hush"})
	return d.image("--secret", "id=s,src="+filepath.Join(d.home, "secret"), filepath.Join(d.home, "apt"))
}

// The jobs of a CI do their work in every kind of outer container, and the image is
// the one that the strongest rung makes.
func TestEveryOuterContainerBuildsTheSameImages(t *testing.T) {
	t.Parallel()
	needDebian(t)
	docker := needDockerd(t)
	var want image
	var once sync.Once
	for _, k := range outerKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			o := k.outer(t, docker)
			fillWork(o.d)
			apt := newName(t)
			out, err := o.sh(`den info | grep -i '^ *rung' >&2; den build --progress=plain --push -t ` + apt + ` --secret id=s,src=/work/secret apt >/work/log 2>&1 || { cat /work/log >&2; exit 1; }
den build -q -t go go >/dev/null; den run --rm go
den build -q -t many many >/dev/null; den run --rm many cat /count
den build --progress=rawjson --secret id=s,src=/work/secret apt 2>/work/json; cat /work/json
den run --rm ` + apt + ` sh -c 'id -un; sudo -n id -u; stat -c "%a %u:%g" /usr/bin/sudo; dpkg-query -W -f "\${Status}\n" cron; cat mine'
den store verify --deep >/dev/null`)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "executed again", []string(nil), executed(t, out))
			var said []string
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, "{") {
					said = append(said, strings.TrimSpace(line))
				}
			}
			equal(t, "what the programs say", []string{"built here", fmt.Sprint(manyFiles), "job", "0", "4755 0:0", "install ok installed", "mine"}, said)
			once.Do(func() { want = aptImage(t) })
			got := fetchImage(t, apt)
			got.tree.is(t, "usr/bin/crontab", "file 2755 0:"+strings.Split(want.tree["usr/bin/crontab"].Owner, ":")[1])
			sameImage(t, want, got, func(e *entry) {
				if e.Type == "dir" || e.Type == "symlink" {
					e.ModTime = time.Time{}
				}
			})
		})
	}
}
