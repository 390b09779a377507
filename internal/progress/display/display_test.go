package display

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/progress"
)

// file is somewhere that a display writes to, and a function that reads it.
func file(t *testing.T) (*os.File, func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// terminal is a pty, and a function that ends it and returns what it showed.
func terminal(t *testing.T) (*os.File, func() string) {
	t.Helper()
	pty, path, err := console.NewPty()
	if err != nil {
		t.Skipf("needs a pty: %v", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Resize(console.WinSize{Height: 24, Width: 120}); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		b, _ := io.ReadAll(pty) // it ends in EIO
		shown <- string(b)
	}()
	t.Cleanup(func() { f.Close(); pty.Close() })
	return f, func() string {
		f.Close()
		return <-shown
	}
}

// step reports a vertex that writes a line and ends.
func step(s progress.Sink, name, output, failure string) {
	d := digest.FromString(name)
	start, end := time.Now(), time.Now().Add(time.Millisecond)
	s.Event(progress.Event{Vertex: &progress.Vertex{Digest: d, Name: name, Started: &start}})
	buf := []byte(output)
	s.Event(progress.Event{Log: &progress.Log{Vertex: d, Stream: 1, Data: buf, Timestamp: start}})
	copy(buf, strings.Repeat("#", len(buf))) // the writer uses its buffer again
	s.Event(progress.Event{Vertex: &progress.Vertex{Digest: d, Name: name, Started: &start, Completed: &end, Error: failure}})
}

func TestPlainShowsStepsOutputAndFailure(t *testing.T) {
	f, read := file(t)
	b, err := NewBuild(f, "plain", Heading{})
	if err != nil {
		t.Fatal(err)
	}
	step(b, "[1/2] RUN good", "hello\n", "")
	step(b, "[2/2] RUN bad", "last words\n", "exit code: 7")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	got := read()
	for _, want := range []string{"#1 [1/2] RUN good", "hello\n", "#1 DONE", "#2 [2/2] RUN bad", "last words\n", "#2 ERROR: exit code: 7"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %s", want, got)
		}
	}
}

func TestHeadingIsTheFirstLine(t *testing.T) {
	for heading, want := range map[Heading]string{
		{Plain: "rung userns: mapped", Terminal: "rung userns"}: "#0 rung userns: mapped\n\n#1 [1/1] RUN good\n",
		{}: "#1 [1/1] RUN good\n",
	} {
		f, read := file(t)
		b, err := NewBuild(f, "plain", heading)
		if err != nil {
			t.Fatal(err)
		}
		step(b, "[1/1] RUN good", "hello\n", "")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := read(); !strings.HasPrefix(got, want) {
			t.Errorf("%+v: %q does not begin with %q", heading, got, want)
		}
	}
}

func TestModeForAFileIsPlainAndForATerminalIsNot(t *testing.T) {
	for _, mode := range []string{"", "auto"} {
		f, read := file(t)
		b, err := NewBuild(f, mode, Heading{})
		if err != nil {
			t.Fatal(err)
		}
		step(b, "step", "", "")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := read(); !strings.HasPrefix(got, "#1 step\n") {
			t.Errorf("a file shows %q", got)
		}
		tty, end := terminal(t)
		if b, err = NewBuild(tty, mode, Heading{Terminal: "rung userns"}); err != nil {
			t.Fatal(err)
		}
		step(b, "step", "", "")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := end(); !strings.Contains(got, "\x1b[") || !strings.Contains(got, "Building") || !strings.Contains(got, "rung userns") {
			t.Errorf("a terminal shows %q", got)
		}
	}
}

func TestRawJSONIsOneObjectALine(t *testing.T) {
	f, read := file(t)
	b, err := NewBuild(f, "rawjson", Heading{})
	if err != nil {
		t.Fatal(err)
	}
	step(b, "step", "out\n", "")
	b.Event(progress.Event{Warning: &progress.Warning{
		Vertex: digest.FromString("step"), Short: []byte("careful"), Filename: "Dockerfile", Source: []byte("FROM x"), From: 1, To: 1,
	}})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var log, warning bool
	for line := range strings.Lines(read()) {
		var x struct {
			Logs     []struct{ Data []byte }
			Warnings []struct {
				Short      []byte
				SourceInfo struct{ Filename string }
			}
		}
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatal(err)
		}
		log = log || len(x.Logs) == 1 && string(x.Logs[0].Data) == "out\n"
		warning = warning || len(x.Warnings) == 1 && x.Warnings[0].SourceInfo.Filename == "Dockerfile"
	}
	if !log || !warning {
		t.Errorf("log seen: %v, warning seen: %v", log, warning)
	}
}

func TestQuietShowsNothingThatWorks(t *testing.T) {
	for _, mode := range []string{"quiet", "none"} {
		f, read := file(t)
		b, err := NewBuild(f, mode, Heading{})
		if err != nil {
			t.Fatal(err)
		}
		step(b, "step", "out\n", "")
		if err := b.Close(); err != nil || read() != "" {
			t.Errorf("%s shows %q, %v", mode, read(), err)
		}
	}
}

func TestQuietShowsTheEndOfWhatFailed(t *testing.T) {
	for _, mode := range []string{"quiet", "none"} {
		f, text := file(t)
		b, err := NewBuild(f, mode, Heading{})
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1, 0)
		good, bad, cancelled := digest.FromString("good"), digest.FromString("bad"), digest.FromString("cancelled")
		say := func(d digest.Digest, data string) {
			b.Event(progress.Event{Log: &progress.Log{Vertex: d, Stream: 1, Data: []byte(data)}})
		}
		for i := range 30 {
			say(bad, fmt.Sprintf("line %d", i))
			say(bad, "\n")
			say(good, "all is well\n")
			say(cancelled, "was cancelled\n")
		}
		for d, failure := range map[digest.Digest]string{good: "", bad: "exit code: 1", cancelled: "context canceled"} {
			b.Event(progress.Event{Vertex: &progress.Vertex{Digest: d, Name: "RUN x", Started: &at, Completed: &at, Error: failure}})
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		want := "------\n > RUN x:\n"
		for i := 20; i < 30; i++ {
			want += fmt.Sprintf("line %d\n", i)
		}
		if got := text(); got != want+"------\n" {
			t.Errorf("%s shows %q", mode, got)
		}
	}
}

func TestTailIsBounded(t *testing.T) {
	if n := len(tail(bytes.Repeat([]byte("x"), 10*tailBytes))); n != tailBytes {
		t.Errorf("a line without end keeps %d bytes, want %d", n, tailBytes)
	}
	if got := string(tail([]byte("1\n2\n\n\n"))); got != "1\n2\n\n\n" {
		t.Errorf("the tail of little is %q", got)
	}
}

func TestUnknownModeNamesTheKnown(t *testing.T) {
	f, _ := file(t)
	_, err := NewBuild(f, "loud", Heading{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "rawjson") {
		t.Errorf("error is %v", err)
	}
	if _, err := NewBuild(f, "tty", Heading{}); err == nil {
		t.Error("a file is a terminal")
	}
}

func TestDisplayTakesEventsFromAllSidesAndAfterItsEnd(t *testing.T) {
	f, read := file(t)
	b, err := NewBuild(f, "plain", Heading{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				step(b, "step "+string(rune('a'+i)), "x\n", "")
			}
		})
	}
	wg.Wait()
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	before := read()
	step(b, "late", "x\n", "")
	if read() != before {
		t.Error("it shows what came after its end")
	}
	for i := range 8 {
		if want := "step " + string(rune('a'+i)) + "\n"; !strings.Contains(before, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

func TestDisplayThatCannotWriteDoesNotHoldUpTheWork(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	b, err := NewBuild(w, "plain", Heading{})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		step(b, "step", "x\n", "")
	}
	_ = b.Close() // what cannot be shown is dropped
}
