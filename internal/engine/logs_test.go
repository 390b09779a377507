package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
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
	long := strings.Repeat("x", logLineBytes+10)
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

func TestFullLogIsReplacedAndTheOneBeforeKept(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.limit = 200
	w, flush := l.stream("stdout")
	for i := range 20 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	flush()
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{logFile, oldLogFile} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Size() > 300 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTornLogLineIsSkipped(t *testing.T) {
	r := newRig(t)
	r.mustRun(RunRequest{Name: "c", Log: true})
	dir, err := r.open("c")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	text := `{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n" + `{"log":"to` + "\n" +
		`{"log":"b\n","stream":"stdout","time":"2026-01-02T03:04:06Z"}` + "\n" + `{"log":"unfinished`
	if err := os.WriteFile(filepath.Join(dir.Path(), logFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := r.logs(LogOptions{Tail: -1}); out != "a\nb\n" {
		t.Errorf("log is %q", out)
	}
}

func TestLogThatCannotBeWrittenDoesNotEndTheProgram(t *testing.T) {
	l, err := openLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	if l.file, err = os.OpenFile("/dev/full", os.O_WRONLY, 0); err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	w, _ := l.stream("stdout")
	for range 3 {
		if n, err := io.WriteString(w, "line\n"); n != 5 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	if err := l.close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("at the end: %v", err)
	}
}
