package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stack has what compose users use: health-check dependencies, a build, secrets, configs, profiles,
// networks with aliases, volumes, published ports.
const stack = `name: stack
services:
  db:
    image: small
    command: sh -c "sleep 0.3; mkdir -p /data; echo from the db > /data/index.html; exec httpd -f -p 5432 -h /data"
    healthcheck: {test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:5432/"], interval: 200ms, retries: 50}
    volumes: ["data:/data"]
    networks: {back: {aliases: [database]}}
  web:
    build: {context: web, args: {WORD: built}}
    depends_on: {db: {condition: service_healthy}, once: {condition: service_completed_successfully}}
    environment: {GREETING: "${GREETING:-hello}"}
    secrets: [token]
    configs: [{source: settings, target: /etc/settings}]
    networks: [back, front]
    ports: ["127.0.0.1:18081:80"]
    labels: {tier: front}
  once:
    image: small
    command: sh -c "wget -q -O - http://database:5432/"
    networks: [back]
    depends_on: {db: {condition: service_healthy}}
  debug:
    image: small
    profiles: [debug]
    command: sleep 1000
networks:
  back: {internal: true}
  front: {}
volumes:
  data: {}
secrets:
  token: {file: ./token}
configs:
  settings: {content: "set=1"}
`

const webDockerfile = `FROM small
ARG WORD
RUN mkdir /w && echo $WORD > /w/word
CMD ["sh", "-c", "{ cat /w/word; echo $GREETING; cat /run/secrets/token /etc/settings; wget -q -O - http://db:5432/; } > /w/index.html; exec httpd -f -p 80 -h /w"]
`

func TestComposeStacks(t *testing.T) {
	t.Parallel()
	everyEngine(t, func(t *testing.T, e *engine) {
		for _, compose := range []string{"docker-compose", "docker-compose-v2"} {
			t.Run(compose, func(t *testing.T) { e.composeStack(t, compose) })
		}
	})
}

// composeFiles copies files, and looks into what runs.
func (e *engine) composeFiles(t *testing.T, c func(string, ...string) string) {
	t.Helper()
	c("cp token web:/tmp/copied")
	equal(t, "a file that was copied in", "hush\n", c("exec -T web cat /tmp/copied"))
	c("cp web:/w/word word")
	equal(t, "a file that was copied out", "built\n", e.must(t, "cat word"))
	equal(t, "processes", "1\n", c("top web | grep -c 'httpd -f -p 80'"))
	equal(t, "images", "stack-web\n", c("images web | grep -o stack-web | head -1"))
	c("pause web")
	equal(t, "services that are paused", "web\n", c("ps --services --status paused"))
	c("unpause web")
	equal(t, "the exit code of one", "3\n", c("run --rm -T once sh -c 'exit 3' >/dev/null 2>&1; echo $?; true"))
	equal(t, "what one that is told to end leaves", "", e.must(t, "docker ps -aq --filter label=com.docker.compose.oneoff=True"))
}

// composeRolling replaces all containers of a service, and waits until they work.
func (e *engine) composeRolling(t *testing.T, c func(string, ...string) string) {
	t.Helper()
	old := c("ps -q db | sort")
	c("up -d --no-deps --force-recreate -t 0 --wait db --scale db=3")
	fresh := c("ps -q db | sort")
	equal(t, "databases", 3, strings.Count(fresh, "\n"))
	for id := range strings.Lines(old) {
		if strings.Contains(fresh, id) {
			t.Errorf("%s was not replaced", id)
		}
	}
	equal(t, "who answers to the alias", "from the db\n", c("run --rm -T --no-deps once 2>/dev/null"))
	c("scale db=1")
	equal(t, "databases", "1\n", c("ps -q db | wc -l"))
	// A follower sees what comes later, and ends with the container.
	follower := make(chan string, 1)
	go func() {
		out, _ := e.sh(t, "until docker inspect -f '{{.State.Status}}' db-follow 2>/dev/null | grep -q -e running -e exited; do sleep 0.05; done; docker logs -f db-follow")
		follower <- out
	}()
	c("run -d --name db-follow once sh -c 'echo told; sleep 0.5; echo the end'")
	equal(t, "what is followed", "told\nthe end\n", <-follower)
	e.must(t, "docker rm -f db-follow")
}

func (e *engine) composeStack(t *testing.T, compose string) {
	for name, text := range map[string]string{"compose.yaml": stack, "web/Dockerfile": webDockerfile, "token": "hush\n"} {
		file := filepath.Join(e.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := func(args string, env ...string) string {
		t.Helper()
		return e.must(t, compose+" "+args+" 2>compose.log || { cat compose.log; exit 1; }", append(env, "DOCKER_BUILDKIT=0", "COMPOSE_BAKE=false")...)
	}
	page := func() string {
		t.Helper()
		return e.must(t, "for i in $(seq 100); do wget -q -O - http://127.0.0.1:18081/ && exit; sleep 0.1; done; exit 1")
	}
	c("up -d --build --wait web")
	equal(t, "the page", "built\nhello\nhush\nset=1from the db\n", page())
	equal(t, "what the once said", "once-1  | from the db", strings.TrimSpace(c("logs once")))
	equal(t, "services that run", "db\nweb\n", c("ps --services --status running | sort"))
	equal(t, "exec", "front\n", c("exec -T web sh -c 'echo front'"))
	equal(t, "run", "from the db\n", c("run --rm -T once 2>/dev/null"))
	equal(t, "port", "127.0.0.1:18081\n", c("port web 80"))

	before := e.must(t, "docker inspect -f '{{.Id}}' stack-db-1")
	c("up -d --wait web", "GREETING=goodbye") // only what changed begins anew
	equal(t, "the page of the new one", "built\ngoodbye\nhush\nset=1from the db\n", page())
	equal(t, "the db's container", before, e.must(t, "docker inspect -f '{{.Id}}' stack-db-1"))

	e.composeFiles(t, c)
	c("up -d --no-recreate --scale db=3", "GREETING=goodbye")
	equal(t, "databases", "3\n", c("ps -q db | wc -l"))
	c("restart -t 0 db")
	e.composeRolling(t, c)
	c("--profile debug up -d debug")
	equal(t, "the profile's", "debug\n", c("--profile debug ps --services --status running | grep debug"))
	c("stop -t 0")
	c("start")
	c("--profile debug down -v --rmi local -t 0")
	equal(t, "left over", "", e.must(t, "docker ps -aq; docker volume ls -q; docker network ls -q --filter type=custom; docker images -q stack-web"))
}
