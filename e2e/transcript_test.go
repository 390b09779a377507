package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A transcript is what a person sees who types commands at an engine: lines
// that begin with "$ " are commands, run by sh one after another in one directory; what
// follows is what they print, both streams, and "[3]" if they end with 3. A line
// that begins with ">" goes on with the command.
//
// "on NAME NAME:" begins what is to be seen on those engines instead: dockerd (the distribution's), moby
// (a newer one, see newerDockerd), privileged, userns, sentry. Each difference between den and dockerd stands there, and nowhere else.
type transcript []exchange

type exchange struct {
	line    int
	command string
	want    map[string]string // by engine; "" is all others
}

var onEngines = regexp.MustCompile(`^on ((?:dockerd|moby|privileged|userns|sentry)(?: (?:dockerd|moby|privileged|userns|sentry))*):$`)

func parseTranscript(text string) (transcript, error) {
	var all transcript
	engines := []string{""}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "$ "):
			all = append(all, exchange{line: i + 1, command: line[2:], want: map[string]string{}})
			engines = []string{""}
		case len(all) == 0 || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "> "):
			all[len(all)-1].command += "\n" + line[2:]
		default:
			x := all[len(all)-1]
			if m := onEngines.FindStringSubmatch(line); m != nil {
				engines = strings.Fields(m[1])
				for _, e := range engines {
					if _, twice := x.want[e]; twice {
						return nil, fmt.Errorf("line %d: %s twice", i+1, e)
					}
					x.want[e] = ""
				}
				continue
			}
			if line == "" { // between two exchanges
				continue
			}
			for _, e := range engines {
				x.want[e] += line + "\n"
			}
		}
	}
	return all, nil
}

// An engine answers the Docker Engine API.
type engine struct {
	name string // as transcripts call it
	host string // DOCKER_HOST
	dir  string // of the one who types, readable for the engine
	env  []string
	// pid is that of a process in the engine's network namespace; 0 is the tests' own.
	pid int
}

// typed is far beyond what a command line takes.
const typed = 90 * time.Second

// sh runs a command line with docker's CLI, and returns both streams and the exit status.
func (e *engine) sh(t testing.TB, command string, env ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), typed) // cleanups type, too
	defer cancel()
	args := []string{"sh", "-c", command}
	if e.pid != 0 {
		args = append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", e.pid), "--"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = e.dir
	cmd.Env = append(append(os.Environ(), "DOCKER_HOST="+e.host, "DOCKER_CONFIG="+filepath.Join(e.dir, ".docker"), "HOME="+e.dir, "PATH="+clientPath(t)+":"+os.Getenv("PATH")), append(e.env, env...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Errorf("%s: %s: does not end\n%s", e.name, command, out.String())
		return out.String() + "it does not end\n", -1
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
	case errors.As(err, &exit):
		return out.String(), exit.ExitCode()
	default:
		t.Fatal(err)
	}
	return out.String(), 0
}

// must is sh for what has to succeed.
func (e *engine) must(t testing.TB, command string, env ...string) string {
	t.Helper()
	out, code := e.sh(t, command, env...)
	if code != 0 {
		t.Fatalf("%s: %s: exit %d\n%s", e.name, command, code, out)
	}
	return out
}

// What differs from run to run.
var fleeting = []struct {
	is   *regexp.Regexp
	says string
}{
	{regexp.MustCompile(`\bsha256:[0-9a-f]{64}\b`), "<digest>"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<id>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<id>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "<time>"},
	{regexp.MustCompile(`\r\n`), "\n"},
	{regexp.MustCompile(`\b127\.0\.0\.1:\d{4,5}/`), "registry/"},
	{regexp.MustCompile(`network endpoints: b, a`), "network endpoints: a, b"}, // a map's order
}

func settled(s string) string {
	for _, f := range fleeting {
		s = f.is.ReplaceAllString(s, f.says)
	}
	return s
}

// play types a transcript at an engine and compares what is to be seen.
func (e *engine) play(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseTranscript(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, x := range all {
		want, other := x.want[e.name]
		if !other {
			want = x.want[""]
		}
		out, code := e.sh(t, expand(t, x.command))
		got := settled(out)
		if got != "" && !strings.HasSuffix(got, "\n") {
			got += "\n"
		}
		var kept []string
		for line := range strings.Lines(got) {
			if line != "\n" {
				kept = append(kept, line)
			}
		}
		got = strings.Join(kept, "")
		if code != 0 {
			got += fmt.Sprintf("[%d]\n", code)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:%d: %s\n%s", file, x.line, x.command, diff)
		}
	}
}

// transcripts are the ones of a directory below testdata.
func transcripts(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join("testdata", dir, "*.txt"))
	if err != nil || len(list) == 0 {
		t.Fatal("no transcripts in ", dir, err)
	}
	return list
}
