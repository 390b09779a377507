package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A ci is a machine that starts jobs in containers: a dockerd with networks, den's images, an image
// docker:cli that has docker's own client and nothing of den, and a registry.
type ci struct {
	*engine
	registry string // host:port, the same for all containers
}

func newCI(t *testing.T) *ci {
	t.Helper()
	needRoot(t)
	need(t, "dockerd", "docker-registry")
	images := denImages(t)
	c := &ci{engine: newDockerd(t)}
	for _, role := range []string{"dind", "kaniko", "kaniko-debug"} {
		c.must(t, "docker load -q -i "+filepath.Join(images, role+".tar"))
	}
	c.must(t, `mkdir cli && cp "$(command -v docker)" "$(command -v docker-compose)" cli/ && printf 'FROM small\nCOPY docker docker-compose /usr/local/bin/\nENV DOCKER_BUILDKIT=0\n' > cli/Dockerfile && DOCKER_BUILDKIT=0 docker build -q -t docker:cli cli && rm -r cli`)
	c.must(t, "cp "+smallArchive(t)+" small.tar && docker network create job")
	c.registry = strings.TrimSpace(c.must(t, "docker network inspect -f '{{(index .IPAM.Config 0).Gateway}}' job")) + ":5000"
	c.startRegistry(t)
	return c
}

// jobScript is what a job does that has docker's client and an address; it ends with the words of
// the image that it built.
const jobScript = `set -e
docker load -q -i /work/small.tar >/dev/null
mkdir /tmp/ctx; printf 'FROM small\nRUN echo "built $(uname -s)" > /word\nCMD ["cat", "/word"]\n' > /tmp/ctx/Dockerfile
docker build -q -t REGISTRY/NAME /tmp/ctx >/dev/null 2>&1
docker push -q REGISTRY/NAME >/dev/null
docker rmi REGISTRY/NAME >/dev/null
docker run --rm REGISTRY/NAME 2>/dev/null
`

// job runs the script as a job named name, in a container that is started with flags.
func (c *ci) job(t *testing.T, name string, flags ...string) {
	t.Helper()
	script := strings.NewReplacer("REGISTRY", c.registry, "NAME", name).Replace(jobScript)
	out := c.must(t, "docker run --rm -v "+c.dir+":/work:ro "+strings.Join(flags, " ")+" docker:cli sh -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'")
	equal(t, name+": what the job's image says", "built Linux\n", out)
}

// served waits until a container's den answers, by the client in its image, as health checks do.
func (c *ci) served(t *testing.T, container string) {
	t.Helper()
	out, code := c.sh(t, "while docker inspect -f '{{.State.Running}}' "+container+" | grep -q true; do docker exec "+container+" docker info >info 2>&1 && exit; sleep 0.1; done; exit 1")
	if code != 0 {
		log, _ := c.sh(t, "cat info; docker logs "+container)
		t.Fatalf("%s: den does not answer: %s\n%s", container, out, log)
	}
}

// The service of a GitLab job, of compose, of a runner's pod is started as docker:dind is, but for its
// name and without privileged; a job of kaniko's as it was.
func TestDensImagesTakeThePlaceOfOthers(t *testing.T) {
	t.Parallel()
	c := newCI(t)
	t.Run("kaniko", func(t *testing.T) { c.kaniko(t) })
	t.Run("documented", func(t *testing.T) { c.documented(t) })
	args := "--mtu=1400 --registry-mirror=http://" + c.registry + " --insecure-registry=" + c.registry + " --storage-driver=overlay2 --max-concurrent-downloads=6"

	t.Run("plain", func(t *testing.T) {
		// The variables of a GitLab job reach its services, too.
		c.must(t, "docker run -d --name plain --network job --network-alias docker -e DOCKER_TLS_CERTDIR= -e DOCKER_HOST=tcp://docker:2375 -e DOCKER_DRIVER=overlay2 den:dind "+args)
		c.served(t, "plain")
		c.job(t, "plain", "--network job -e DOCKER_HOST=tcp://docker:2375")
		c.ends(t, "plain")
	})
	t.Run("TLS", func(t *testing.T) {
		c.must(t, "docker run -d --name tls --network job --network-alias docker -v certs:/certs/client -e DOCKER_TLS_CERTDIR=/certs den:dind "+args)
		c.served(t, "tls")
		client := "--network job -v certs:/certs/client:ro -e DOCKER_CERT_PATH=/certs/client"
		c.job(t, "tls", client, "-e DOCKER_HOST=tcp://docker:2376 -e DOCKER_TLS_VERIFY=1")
		for env, words := range map[string]string{
			"-e DOCKER_HOST=tcp://docker:2376":                        "Client sent an HTTP request to an HTTPS server",
			"-e DOCKER_HOST=tcp://docker:2375":                        "set DOCKER_HOST=tcp://docker:2376, DOCKER_TLS_VERIFY=1",
			"-e DOCKER_HOST=tcp://docker:2375 -e DOCKER_TLS_VERIFY=1": "server gave HTTP response to HTTPS client",
		} {
			out, code := c.sh(t, "docker run --rm "+client+" "+env+" docker:cli docker version")
			if code == 0 || !strings.Contains(out, words) {
				t.Errorf("%s: exit %d, want %q:\n%s", env, code, words, out)
			}
		}
		if log := c.must(t, "docker logs tls 2>&1"); !strings.Contains(log, "which is plain HTTP: set DOCKER_HOST=tcp://docker:2376 there") {
			t.Errorf("the log does not say what the client does wrong:\n%s", log)
		}
		c.ends(t, "tls")
	})
	t.Run("one pod", func(t *testing.T) {
		// Containers of a pod share a network namespace, and GitHub's runners the directory of the socket.
		c.must(t, "docker run -d --name pod -v sockets:/var/run -v den:/var/lib/docker -e DOCKER_GROUP_GID=123 den:dind dockerd --host=unix:///var/run/docker.sock --host=tcp://127.0.0.1:2375 --group=123 --insecure-registry="+c.registry)
		c.served(t, "pod")
		c.job(t, "pod-port", "--network container:pod -e DOCKER_HOST=tcp://localhost:2375")
		c.job(t, "pod-socket", "--network container:pod -v sockets:/var/run --user 1001:123 -e HOME=/tmp")
		c.ends(t, "pod")
	})
	for name, user := range map[string]string{"restricted": "1000:1000", "random": "1000670000:0"} {
		t.Run(name, func(t *testing.T) {
			// As the pod of docs/serve.md: the volumes are the user's, who has nothing.
			c.must(t, strings.NewReplacer("NAME", name, "USER", user).Replace("mkdir -m 777 NAME-run NAME-lib && docker run -d --name NAME --user USER "+strings.Join(hardened, " ")+
				" -v $PWD/NAME-run:/run/docker -v $PWD/NAME-lib:/var/lib/docker den:dind dockerd --host=unix:///run/docker/docker.sock --insecure-registry="+c.registry+
				"; for i in $(seq 200); do [ -S NAME-run/docker.sock ] && exit; sleep 0.05; done; docker logs NAME; exit 1"))
			c.job(t, name, "-v $PWD/"+name+"-run:/run/docker --user "+user+" -e HOME=/tmp -e DOCKER_HOST=unix:///run/docker/docker.sock")
			c.ends(t, name)
		})
	}
}

// fenced is the block of a page that follows a line.
func fenced(t *testing.T, page, after string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+after+"\n")
	_, rest, _ = strings.Cut(rest, "```")
	_, rest, _ = strings.Cut(rest, "\n")
	block, _, found := strings.Cut(rest, "\n```")
	if !found {
		t.Fatalf("%s has no block after %q", page, after)
	}
	return block + "\n"
}

// The lines of docs/serve.md are typed as they are there.
func (c *ci) documented(t *testing.T) {
	t.Helper()
	c.must(t, "docker tag den:dind registry.example.com/den:dind")
	for line := range strings.Lines(fenced(t, "serve.md", "docker:")) {
		out := c.must(t, strings.TrimPrefix(line, "$ "))
		if strings.Contains(line, "docker info") && !strings.Contains(out, "Rung: default") {
			t.Errorf("docker info says\n%s", out)
		}
	}
	c.must(t, "docker stop den && docker rm -v den && docker volume rm den certs")
	if err := os.WriteFile(filepath.Join(c.dir, "compose.yaml"), []byte(fenced(t, "serve.md", "compose:")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := c.must(t, "docker-compose run --rm -T job docker info"); !strings.Contains(out, "Rung: default") {
		t.Errorf("docker info says\n%s", out)
	}
	c.must(t, "docker-compose down -v")
}

// ends stops a den as docker does, and looks at how it ended and what it said.
func (c *ci) ends(t *testing.T, container string) {
	t.Helper()
	c.must(t, "docker stop -t 60 "+container)
	equal(t, container+"'s exit status", "0\n", c.must(t, "docker inspect -f '{{.State.ExitCode}}' "+container))
	c.must(t, "docker rm -v "+container)
}

// kaniko builds as a job of GitLab does, which has the image's shell and not its entry point, and as
// pods do, which have the entry point alone.
func (c *ci) kaniko(t *testing.T) {
	t.Helper()
	c.must(t, "mkdir src && printf 'FROM scratch\nCOPY f /\n' > src/Dockerfile && echo kaniko > src/f")
	c.must(t, "docker run --rm --entrypoint= -v $PWD/src:/builds/x -w /builds/x -e CI_PROJECT_DIR=/builds/x den:kaniko-debug sh -ec '"+
		`test -x /busybox/sh; mkdir -p /kaniko/.docker; echo {} > /kaniko/.docker/config.json
		/kaniko/executor --context "$CI_PROJECT_DIR" --dockerfile "$CI_PROJECT_DIR/Dockerfile" --destination `+c.registry+`/kaniko:debug --insecure
		/kaniko/warmer --insecure-pull --image `+c.registry+"/kaniko:debug'")
	c.must(t, "docker run --rm -v $PWD/src:/workspace den:kaniko --insecure --destination="+c.registry+"/kaniko:pod")
	c.must(t, "docker run --rm --user 1000:1000 "+strings.Join(hardened, " ")+" --tmpfs /tmp:exec -e HOME=/tmp -v $PWD/src:/workspace den:kaniko --insecure --destination="+c.registry+"/kaniko:restricted")
	for _, tag := range []string{"debug", "pod", "restricted"} {
		if m := c.must(t, "wget -q -O - --header 'Accept: application/vnd.oci.image.manifest.v1+json' http://127.0.0.1:5000/v2/kaniko/manifests/"+tag); !strings.Contains(m, `"layers"`) {
			t.Errorf("%s: %s", tag, m)
		}
	}
}
