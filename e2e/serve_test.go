package e2e

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An engineAPI is a den that answers the Docker Engine API; the real docker CLI talks to it.
type engineAPI struct {
	*den
	socket string
	stop   func() // ends den serve and waits for it
}

// serveAPI starts den serve, which ends with the test.
func serveAPI(t *testing.T, d *den, args ...string) *engineAPI {
	t.Helper()
	need(t, "docker")
	dir, err := os.MkdirTemp("", "den-s-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &engineAPI{den: d, socket: filepath.Join(dir, "d.sock")}
	d.own(dir)
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.start(args...)
	return s
}

// start starts den serve on the test's socket.
func (s *engineAPI) start(args ...string) {
	s.t.Helper()
	cmd := s.command(context.Background(), append([]string{"serve", "-H", "unix://" + s.socket}, args...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	over := false
	s.stop = func() {
		if over {
			return
		}
		over = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-ended
			s.t.Errorf("den serve does not end\n%s", log.String())
		}
		if s.t.Failed() {
			s.t.Logf("den serve said:\n%s", log.String())
		}
	}
	s.t.Cleanup(s.stop)
	s.eventually("den serve listens", func() bool {
		select {
		case <-ended:
			s.t.Fatalf("den serve ended:\n%s", log.String())
		default:
		}
		_, err := os.Stat(s.socket)
		return err == nil
	})
}

// withSmall pulls the small image by the API and calls it small.
func (s *engineAPI) withSmall() *engineAPI {
	s.t.Helper()
	ref := smallImage(s.t)
	s.docker("pull", "-q", ref)
	s.docker("tag", ref, "small")
	return s
}

// tryDocker runs the docker CLI and returns whatever happened.
func (s *engineAPI) tryDocker(stdin io.Reader, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(clientPath(s.t), "docker"), args...)
	cmd.Env = append(append([]string{}, s.env...), "DOCKER_HOST=unix://"+s.socket, "DOCKER_CONFIG="+filepath.Join(s.home, "docker"))
	cmd.Dir = s.home
	return s.finish(ctx, cmd, stdin)
}

// docker is tryDocker for what must succeed; it returns standard output without the last line's end.
func (s *engineAPI) docker(args ...string) string {
	s.t.Helper()
	r := s.tryDocker(nil, args...)
	if r.code != 0 {
		s.t.Fatalf("docker %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSuffix(r.out, "\n")
}

// refused runs docker for what must fail with the words.
func (s *engineAPI) refused(words string, args ...string) {
	s.t.Helper()
	r := s.tryDocker(nil, args...)
	if r.code == 0 || !strings.Contains(r.err, words) {
		s.t.Errorf("docker %s: exit %d, want an error with %q\n%s%s", strings.Join(args, " "), r.code, words, r.out, r.err)
	}
}
