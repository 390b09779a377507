package e2e

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// An outerServer is a container of dockerd whose one program is den serve. Who types commands is in
// its network namespace, and reaches its socket through a volume.
type outerServer struct {
	*engine
	docker    dockerd
	container string
}

// serve starts den serve in a container of that kind that has no network but a loopback device.
func (k outerKind) serve(t *testing.T, docker dockerd) *outerServer {
	t.Helper()
	o := k.outer(t, docker)
	dir, name := workDir(t), "outer-"+filepath.Base(o.d.home)
	args := append([]string{"run", "-d", "--name", name, "--network=none", "-v", env.den + ":/bin/den:ro", "-v", o.d.home + ":" + o.d.home, "-v", dir + ":" + dir, "-v", clientPath(t) + ":" + clientPath(t) + ":ro"}, o.flags...)
	docker.run(t, append(args, smallImage(t), "den", "serve", "-H", "unix://"+o.d.home+"/docker.sock")...)
	s := &outerServer{docker: docker, container: name}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("den serve said:\n%s", docker.said(name))
		}
		docker.run(t, "rm", "-f", name)
	})
	pid, err := strconv.Atoi(strings.TrimSpace(docker.run(t, "inspect", "-f", "{{.State.Pid}}", name)))
	if err != nil {
		t.Fatal(err)
	}
	s.engine = &engine{name: k.engine, host: "unix://" + o.d.home + "/docker.sock", dir: dir, pid: pid}
	o.d.eventually("den serve answers", func() bool { _, code := s.sh(t, "docker version"); return code == 0 })
	s.must(t, "docker load -q -i "+smallArchive(t))
	return s
}

// end stops den as docker stop does, while a container of its own runs.
func (s *outerServer) end(t *testing.T) {
	t.Helper()
	s.must(t, "docker run -d --stop-timeout 1 --name last small sleep 1000")
	s.docker.run(t, "stop", "-t", "60", s.container)
	equal(t, "den's exit status", "0\n", s.docker.run(t, "inspect", "-f", "{{.State.ExitCode}}", s.container))
}

// What the users of docker:dind do works in every kind of outer container.
func TestDenServeWorksInsideContainers(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for _, k := range append([]outerKind{{"user namespaces", "userns", unconfined, false, "userns"}}, outerKinds...) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s := k.serve(t, docker)
			if rung := s.must(t, "docker info 2>/dev/null | grep Rung:"); !strings.HasPrefix(strings.TrimSpace(rung), "Rung: "+k.rung) {
				t.Errorf("want rung %s: %s", k.rung, rung)
			}
			for _, file := range transcripts(t, "outer") {
				s.play(t, file)
			}
			if k.name == "restricted" {
				s.composeStack(t, "docker-compose")
			}
			s.end(t)
		})
	}
}
