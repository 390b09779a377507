package log

import (
	"bytes"
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

func open(t *testing.T, o Options) *Log {
	t.Helper()
	l, err := Open(filepath.Join(t.TempDir(), "log"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// fifo opens both ends of a FIFO as the engine does.
func fifo(t *testing.T) (r, w *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if w, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

func write(l *Log, s Stream, text string) { _, _ = io.WriteString(l.Writer(s), text) }

// lines reads all that there is, as stream and text.
func lines(t *testing.T, l *Log, want Selection) (out []string) {
	t.Helper()
	c, err := l.Cursor()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ls, err := NewLines(c, want)
	if err != nil {
		t.Fatal(err)
	}
	for {
		line, err := ls.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(line.Stream, string(line.Text)))
	}
	for {
		line, ok := ls.Rest()
		if !ok {
			return out
		}
		out = append(out, fmt.Sprint(line.Stream, string(line.Text)))
	}
}

func TestLinesArePutTogetherStreamByStream(t *testing.T) {
	l := open(t, Options{})
	write(l, Stdout, "one\nha")
	write(l, Stderr, "oops\n")
	write(l, Stdout, "lf\nunfinished")
	l.Mark()
	write(l, Stdout, "next run")
	want := []string{"1one\n", "2oops\n", "1half\n", "1unfinished", "1next run"}
	if d := cmp.Diff(want, lines(t, l, Selection{Tail: -1})); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"2oops\n"}, lines(t, l, Selection{Tail: -1, Stderr: true})); d != "" {
		t.Error(d)
	}
	for n := range len(want) + 2 {
		if d := cmp.Diff(want[max(0, len(want)-n):], lines(t, l, Selection{Tail: n}), cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); d != "" {
			t.Errorf("tail %d: %s", n, d)
		}
	}
}

func TestLongLinesAreCut(t *testing.T) {
	l := open(t, Options{})
	write(l, Stdout, strings.Repeat("a", MaxLine+1)+"\nb\n")
	got := lines(t, l, Selection{Tail: -1})
	if len(got) != 3 || len(got[0]) != MaxLine+1 || got[1] != "1a\n" || got[2] != "1b\n" {
		t.Errorf("%d lines", len(got))
	}
}

func TestTimesBoundLines(t *testing.T) {
	l := open(t, Options{})
	write(l, Stdout, "early\n")
	between := time.Now()
	write(l, Stdout, "late\n")
	if d := cmp.Diff([]string{"1late\n"}, lines(t, l, Selection{Tail: -1, Since: between})); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"1early\n"}, lines(t, l, Selection{Tail: 1, Until: between})); d != "" {
		t.Error(d)
	}
}

func TestRotationKeepsTheNewestAndTailSpansSegments(t *testing.T) {
	l := open(t, Options{MaxBytes: 100, MaxFiles: 3})
	for i := range 100 {
		write(l, Stdout, fmt.Sprintf("line %03d\n", i))
	}
	numbers, err := segments(l.dir)
	if err != nil || len(numbers) != 3 {
		t.Fatalf("segments are %v, %v", numbers, err)
	}
	got := lines(t, l, Selection{Tail: 25})
	if len(got) != 25 || got[24] != "1line 099\n" || got[0] != "1line 075\n" {
		t.Errorf("%d lines: %q", len(got), got)
	}
}

func TestSlowReaderMissesNothingThatRotationRemoves(t *testing.T) {
	l := open(t, Options{MaxBytes: 50, MaxFiles: 1})
	c, err := l.End()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var want bytes.Buffer
	for i := range 200 {
		text := fmt.Sprintf("%d\n", i)
		want.WriteString(text)
		write(l, Stdout, text)
	}
	var got bytes.Buffer
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(chunk.Data)
	}
	if d := cmp.Diff(want.String(), got.String()); d != "" {
		t.Error(d)
	}
	if len(l.kept) > 0 {
		t.Errorf("%d segments are kept for nobody", len(l.kept))
	}
}

func TestPumpMovesWhatTheProgramWrote(t *testing.T) {
	l := open(t, Options{})
	for name, copies := range map[string]bool{"by splice": false, "by copying": true} {
		l.copies = copies
		r, w := fifo(t)
		p, err := l.Pump(Stdout, r)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.End()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("0123456789abcdef"), 20000)
		if _, err := w.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := p.Finish(); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for {
			chunk, err := c.Next()
			if err != nil {
				break
			}
			got = append(got, chunk.Data...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
		_ = c.Close()
	}
}

func TestPumpEndsWithThePipe(t *testing.T) {
	l := open(t, Options{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := l.Pump(Stderr, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("bye"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-p.Done()
	if err := p.Finish(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"2bye"}, lines(t, l, Selection{Tail: -1})); d != "" {
		t.Error(d)
	}
}

func TestFollowerIsWoken(t *testing.T) {
	l := open(t, Options{})
	c, err := l.End()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	changed := c.Changed()
	if _, err := c.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	write(l, Stdout, "x")
	if err := c.Wait(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if chunk, err := c.Next(); err != nil || string(chunk.Data) != "x" {
		t.Errorf("got %q, %v", chunk.Data, err)
	}
}

func TestTornIndexIsMended(t *testing.T) {
	l := open(t, Options{})
	write(l, Stdout, "a\n")
	if _, err := l.current.index.WriteAt([]byte("torn"), entryBytes); err != nil {
		t.Fatal(err)
	}
	again, err := Open(l.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	write(again, Stderr, "b\n")
	if d := cmp.Diff([]string{"1a\n", "2b\n"}, lines(t, again, Selection{Tail: -1})); d != "" {
		t.Error(d)
	}
}

func TestFullDiskDoesNotHoldUpTheProgram(t *testing.T) {
	l := open(t, Options{})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	l.current.data.Close()
	l.current.data = full
	r, w := fifo(t)
	p, err := l.Pump(Stdout, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte("line\n"), 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := p.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("at the end: %v", err)
	}
}

func FuzzReaderSurvivesAnyIndex(f *testing.F) {
	f.Add([]byte("data\nmore"), entry{0, Stdout, 5}.appendTo(nil))
	f.Add([]byte("data"), append(entry{9, Stderr, 5}.appendTo(nil), entry{2, 3, -1}.appendTo(nil)...))
	f.Fuzz(func(t *testing.T, data, index []byte) {
		dir := t.TempDir()
		path := segmentPath(dir, 1)
		if err := errors.Join(os.WriteFile(path+dataSuffix, data, 0o600), os.WriteFile(path+indexSuffix, index, 0o600)); err != nil {
			t.Fatal(err)
		}
		for _, tail := range []int{-1, 2} {
			c, err := Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			ls, err := NewLines(c, Selection{Tail: tail})
			total := 0
			for err == nil {
				var line Line
				line, err = ls.Next()
				total += len(line.Text)
			}
			if total > len(data) {
				t.Errorf("%d bytes out of %d", total, len(data))
			}
			_ = c.Close()
		}
	})
}

func BenchmarkPump(b *testing.B) {
	l, err := Open(filepath.Join(b.TempDir(), "log"), Options{MaxBytes: 64 << 20, MaxFiles: 1})
	if err != nil {
		b.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	p, err := l.Pump(Stdout, r)
	if err != nil {
		b.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("a line of a log that is sixty-four bytes long, with its end....\n"), 512)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := w.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	w.Close()
	if err := errors.Join(p.Finish(), l.Close(), r.Close()); err != nil {
		b.Fatal(err)
	}
}
