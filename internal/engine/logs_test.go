package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"den/internal/engine/log"
)

// talker is a program that writes what it is sent.
func talker(lines <-chan string) func(*fakeSandbox) int {
	return func(s *fakeSandbox) int {
		for l := range lines {
			w := s.request.Stdout
			if strings.HasPrefix(l, "err") {
				w = s.request.Stderr
			}
			if _, err := io.WriteString(w, l); err != nil {
				return 1
			}
		}
		return 0
	}
}

func (r *rig) logs(o LogOptions) (stdout, stderr string) {
	r.t.Helper()
	var out, err bytes.Buffer
	if e := r.copyLogs(r.t.Context(), "c", o, &out, &err); e != nil {
		r.t.Fatal(e)
	}
	return out.String(), err.String()
}

func TestLogKeepsStreamsApartAndLinesWhole(t *testing.T) {
	r := newRig(t)
	lines := make(chan string, 8)
	r.exec.program = talker(lines)
	long := strings.Repeat("x", log.MaxLine+10)
	for _, l := range []string{"a\nb", "c\n", "err 1\nerr 2\n", long + "\n", "no end"} {
		lines <- l
	}
	close(lines)
	r.mustRun(RunRequest{Name: "c", Log: true})
	out, errs := r.logs(LogOptions{Tail: -1})
	if d := cmp.Diff("a\nbc\n"+long+"\nno end", out); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff("err 1\nerr 2\n", errs); d != "" {
		t.Error(d)
	}
	if out, _ := r.logs(LogOptions{Tail: 1}); out != "no end" {
		t.Errorf("the tail is %q", out)
	}
	if out, errs := r.logs(LogOptions{Tail: 0}); out+errs != "" {
		t.Errorf("the empty tail is %q %q", out, errs)
	}
	if out, errs := r.logs(LogOptions{Tail: -1, Since: time.Now().Add(time.Hour)}); out+errs != "" {
		t.Errorf("from the future come %q %q", out, errs)
	}
	if out, errs := r.logs(LogOptions{Tail: -1, Until: time.Now().Add(-time.Hour)}); out+errs != "" {
		t.Errorf("from before the start come %q %q", out, errs)
	}
	if out, _ := r.logs(LogOptions{Tail: 1, Timestamps: true}); !strings.HasPrefix(out, fmt.Sprint(time.Now().UTC().Year())) {
		t.Errorf("with its time it is %q", out)
	}
}

func TestFollowerSeesEverythingAndEndsWithTheContainer(t *testing.T) {
	for name, remove := range map[string]bool{"kept": false, "removed": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			lines := make(chan string)
			r.exec.program = talker(lines)
			started, ended := r.background(RunRequest{Name: "c", Log: true, Remove: remove})
			<-started
			lines <- "before\n"
			seen, w := io.Pipe()
			done := make(chan error, 1)
			go func() {
				err := r.copyLogs(t.Context(), "c", LogOptions{Follow: true, Tail: -1}, w, io.Discard)
				done <- err
				w.CloseWithError(err)
			}()
			buf := make([]byte, 64)
			n, err := seen.Read(buf)
			if string(buf[:n]) != "before\n" || err != nil {
				t.Errorf("first came %q, %v", buf[:n], err)
			}
			lines <- "after\n"
			close(lines)
			rest, err := io.ReadAll(seen)
			if string(rest) != "after\n" || err != nil {
				t.Errorf("then came %q, %v", rest, err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
}

func TestFollowerEndsWhenItsCallerDoes(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	started, ended := r.background(RunRequest{Name: "c", Log: true})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.copyLogs(ctx, "c", LogOptions{Follow: true, Tail: -1}, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if err := r.Signal("c", 9); err != nil {
		t.Fatal(err)
	}
	<-ended
}
