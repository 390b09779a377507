package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A den serve that can be killed and started again at the same place.
type server struct {
	*engine
	d     *den
	ended chan struct{} // when den serve has
}

// kill9 kills den serve alone and starts another.
func (s *server) kill9(t *testing.T) {
	t.Helper()
	s.die9(t)
	s.again(t)
}

func (s *server) die9(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(s.served(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// served is the process id of den serve.
func (s *server) served(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.d.home, "serve.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A den serve that is killed and started again finds its containers running, their ports
// answering, their logs complete and their exit codes kept.
func TestContainersOutliveDenServe(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, d := range map[string]func(testing.TB) *den{"privileged": newDen, "userns": newPlainDen} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := d(t).keptServer(t, name)
			s.must(t, `docker run -d --name web -p 127.0.0.1:18090:80 small sh -c 'echo here > /index.html; exec httpd -f -p 80 -h /'
docker run -d --name count small sh -c 'i=0; while [ $i -lt 300000 ]; do echo $i; i=$((i+1)); done; exit 9'
docker run -d --name ends --restart no small sh -c 'sleep 1; exit 4'
docker run -d --name gone --rm small sleep 1
docker run -dit --name tty small sh`)
			for range 3 {
				s.kill9(t)
			}
			equal(t, "the port", "here\n", s.must(t, "wget -q -O - http://127.0.0.1:18090/"))
			equal(t, "exit code of what ended meanwhile", "4\n", s.must(t, "docker wait ends"))
			equal(t, "exit code of what wrote", "9\n", s.must(t, "docker wait count"))
			var want strings.Builder
			for i := range 300000 {
				fmt.Fprintln(&want, i)
			}
			if got := s.must(t, "docker logs count"); got != want.String() {
				t.Errorf("the log has %d bytes, want %d", len(got), want.Len())
			}
			out := filepath.Join(s.d.home, "late")
			if err := errors.Join(os.Mkdir(out, 0o777), os.Chmod(out, 0o777)); err != nil {
				t.Fatal(err)
			}
			s.must(t, "docker run -d --name late -v "+out+":/o small sh -c 'until [ -e /o/go ]; do sleep 0.1; done; seq 20000; echo last >&2; touch /o/done; exit 3'")
			s.die9(t)
			if err := os.WriteFile(filepath.Join(out, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s.must(t, "for i in $(seq 600); do [ -e "+out+"/done ] && break; sleep 0.1; done; [ -e "+out+"/done ]; sleep 0.5 # for its end")
			s.again(t)
			var seq strings.Builder
			for i := range 20000 {
				fmt.Fprintln(&seq, i+1)
			}
			equal(t, "exit code of what ended without a den", "3\n", s.must(t, "docker wait late"))
			if got := s.must(t, "docker logs late 2>&1 >/dev/null; docker logs late 2>/dev/null"); got != "last\n"+seq.String() {
				t.Errorf("the log of what ended without a den has %d bytes, want %d", len(got), seq.Len()+5)
			}
			s.must(t, "for i in $(seq 100); do docker inspect gone >/dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1")
			equal(t, "a program in what was taken over", "yes\n", s.must(t, "docker exec web echo yes"))
			equal(t, "running", "tty\nweb\n", s.must(t, "docker ps --format '{{.Names}}' | sort"))
			equal(t, "what happened before", "create\nstart\n", s.must(t, "docker events --since 1h --until 0s --filter container=web --filter event=create --filter event=start --format '{{.Action}}'"))
			if out := s.must(t, "docker update --memory 64m --memory-swap 64m --pids-limit 30 web 2>&1"); out == "web\n" { // else it warns that there are no cgroups
				if got := s.must(t, "docker stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' web"); !strings.Contains(got, "/ 64MiB ") {
					t.Errorf("limits of what was taken over: %q", got)
				}
			} else if name == "privileged" {
				t.Errorf("limits of what was taken over: %q", out)
			}
			s.must(t, "docker stop -t 0 web tty && docker start web")
			equal(t, "the port of the one that was started again", "here\n", s.must(t, "for i in $(seq 50); do wget -q -O - http://127.0.0.1:18090/ && exit; sleep 0.1; done; exit 1"))
			s.must(t, "docker rm -f web tty count ends")
		})
	}
}

// On the rungs with a kernel in user space containers end with den serve, and their
// restart policies apply when it comes back.
func TestContainersOnTheSentryEndWithDenServe(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := newSentryDen(t).keptServer(t, "sentry")
	s.must(t, `docker run -d --name dies small sleep 1000
docker run -d --name returns --restart always small sleep 1000`)
	s.kill9(t)
	equal(t, "what died", "exited 137\n", s.must(t, "docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' dies"))
	s.must(t, "for i in $(seq 100); do docker inspect -f '{{.State.Status}}' returns | grep -q running && exit; sleep 0.1; done; exit 1")
	s.must(t, "docker rm -f dies returns")
	s.d.eventually("no process is left", func() bool { return len(s.d.sandboxed("sleep")) == 0 })
}

// keptServer starts a den serve that can be killed: its network namespace is another process's.
func (d *den) keptServer(t *testing.T, name string) *server {
	t.Helper()
	keeper := exec.Command("sleep", "infinity")
	alone(keeper, nil)
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keeper.Process.Kill(); _ = keeper.Wait() })
	// While a process of several threads becomes another program, its namespaces cannot be opened.
	d.eventually("the namespace has its keeper", func() bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", keeper.Process.Pid))
		return err == nil && string(comm) == "sleep\n"
	})
	d.t = t
	s := &server{d: d, engine: &engine{name: name, host: "unix://" + filepath.Join(d.home, "docker.sock"), dir: workDir(t), pid: keeper.Process.Pid}}
	s.again(t)
	t.Cleanup(func() { _ = syscall.Kill(s.served(t), syscall.SIGTERM); <-s.ended })
	s.must(t, "docker load -q -i "+smallArchive(t))
	return s
}

// again starts den serve and waits until it answers.
func (s *server) again(t *testing.T) {
	t.Helper()
	if s.ended != nil {
		<-s.ended
	}
	uid, gid := 0, 0
	if s.d.cred != nil {
		uid, gid = int(s.d.cred.Uid), int(s.d.cred.Gid)
	}
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", s.pid), "--", filepath.Join(env.dir, "lonely"), fmt.Sprint(uid), fmt.Sprint(gid),
		env.den, "serve", "-H", s.host, "--pidfile", filepath.Join(s.d.home, "serve.pid"))
	cmd.Env, cmd.Dir = s.d.env, s.d.home
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func() { _ = cmd.Wait(); close(s.ended) }()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, code := s.sh(t, "docker version")
		if code == 0 {
			return
		}
		select {
		case <-s.ended:
			t.Fatalf("den serve ended: %s", &said)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("den serve does not answer: %s\n%s", out, &said)
		}
	}
}
