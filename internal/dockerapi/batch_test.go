package dockerapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

type countingWriter struct {
	writes, bytes int
	err           error
	wrote         chan struct{}
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.writes++
	w.bytes += len(p)
	if w.wrote != nil {
		close(w.wrote)
	}
	return len(p), w.err
}

func TestBatchMakesFewWritesOfMany(t *testing.T) {
	w := &countingWriter{}
	b := newBatch(w)
	for range 10_000 {
		if _, err := io.WriteString(b, strings.Repeat("x", 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if w.bytes != 1_000_000 || w.writes > 1000 {
		t.Errorf("%d bytes in %d writes", w.bytes, w.writes)
	}
}

func TestBatchSendsALineThatStaysAlone(t *testing.T) {
	w := &countingWriter{wrote: make(chan struct{})}
	b := newBatch(w)
	if _, err := io.WriteString(b, "x"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.wrote:
	case <-time.After(time.Minute):
		t.Fatal("the line is kept")
	}
	if err := b.Close(); err != nil || w.bytes != 1 {
		t.Errorf("%d bytes, %v", w.bytes, err)
	}
}

func TestBatchRemembersThatItsReaderIsGone(t *testing.T) {
	gone := errors.New("gone")
	b := newBatch(&countingWriter{err: gone})
	if _, err := b.Write(make([]byte, batchBytes)); !errors.Is(err, gone) {
		t.Errorf("first write: %v", err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, gone) {
		t.Errorf("second write: %v", err)
	}
	if err := b.Close(); !errors.Is(err, gone) {
		t.Errorf("close: %v", err)
	}
}

// BenchmarkLogs is how fast lines of 100 bytes get to a client.
func BenchmarkLogs(b *testing.B) {
	line := []byte(strings.Repeat("x", 99) + "\n")
	f := &fake{log: func(_ context.Context, stdout, _ io.Writer) error {
		for range 1_000_000 {
			if _, err := stdout.Write(line); err != nil {
				return err
			}
		}
		return nil
	}}
	dial := serve(b, New(Options{Engine: f}))
	b.SetBytes(int64(len(line)) * 1_000_000)
	for b.Loop() {
		conn := dial()
		fmt.Fprint(conn, "GET /containers/a/logs?stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 108_000_000 {
			b.Fatal(n, err)
		}
	}
}
