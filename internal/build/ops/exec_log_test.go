package ops

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"den/internal/progress"
)

// logs collects the output that a sink was told of.
func logs() (progress.Sink, *bytes.Buffer) {
	var b bytes.Buffer
	return progress.Func(func(e progress.Event) {
		if e.Log != nil {
			b.Write(e.Log.Data)
		}
	}), &b
}

func TestEndlessOutputIsClippedAndItsEndKept(t *testing.T) {
	sink, out := logs()
	l := newStepLog(sink, "", 1)
	l.now = func() time.Time { return l.started.Add(time.Hour) }
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 64 {
		if n, err := l.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := l.Write([]byte("the last words\n")); err != nil {
		t.Fatal(err)
	}
	if got := out.Len(); got > maxLogBytes+100 {
		t.Errorf("%d bytes came through", got)
	}
	if !strings.HasSuffix(out.String(), "\n[output clipped, log limit 2MiB reached]\n") {
		t.Errorf("ends in %q", out.Bytes()[out.Len()-60:])
	}
	out.Reset()
	l.flushTail()
	if !strings.HasSuffix(out.String(), "the last words\n") || out.Len() != logTailBytes {
		t.Errorf("tail of %d bytes ends in %q", out.Len(), out.Bytes()[max(0, out.Len()-20):])
	}
}

func TestFastOutputIsClippedByRate(t *testing.T) {
	sink, out := logs()
	l := newStepLog(sink, "", 2)
	now := l.started
	l.now = func() time.Time { return now }
	l.Write(bytes.Repeat([]byte("x"), maxLogPerSecond+1))
	if !strings.HasSuffix(out.String(), "[output clipped, log limit 200KiB/s reached]\n") {
		t.Errorf("ends in %q", out.Bytes()[max(0, out.Len()-60):])
	}
	now = now.Add(2 * time.Second)
	out.Reset()
	l.Write([]byte("later\n"))
	if out.String() != "later\n" {
		t.Errorf("after a pause: %q", out)
	}
}

func TestShortTailIsKeptInOrder(t *testing.T) {
	l := newStepLog(progress.Discard, "", 1)
	want := ""
	for i := range 3000 {
		line := strings.Repeat(string(rune('a'+i%26)), 150) + "\n"
		l.keep([]byte(line))
		want += line
	}
	sink, out := logs()
	l.sink = sink
	l.flushTail()
	if got := out.String(); got != want[len(want)-logTailBytes:] {
		t.Error("the ring does not hold the last bytes in order")
	}
}
