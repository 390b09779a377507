package sandboxtest

import (
	"bufio"
	"context"
	"os"
	"time"

	"den/internal/sandbox"
)

// lines reads a running payload's output line by line.
type lines struct {
	b *Bench
	r *bufio.Reader
	f *os.File
}

func newLines(b *Bench, f *os.File) *lines { return &lines{b, bufio.NewReader(f), f} }

// next waits for the next line.
func (l *lines) next() string {
	l.b.Helper()
	l.b.must(l.f.SetReadDeadline(time.Now().Add(limit)))
	s, err := l.r.ReadString('\n')
	if err != nil {
		l.b.Fatalf("the payload said %q and then: %v", s, err)
	}
	return s
}

// start starts r, whose output lines has.
func (b *Bench) start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, *lines) {
	b.Helper()
	out, w, err := os.Pipe()
	b.must(err)
	// Not the file itself: for a terminal it has to be copied anyhow.
	r.Stdout, r.Stderr = struct{ *writer }{&writer{w}}, struct{ *writer }{&writer{w}}
	s, err := b.Exec.Start(ctx, r)
	b.must(err)
	b.Cleanup(func() {
		_, _ = s.Wait(context.Background())
		w.Close()
		out.Close()
	})
	return s, newLines(b, out)
}

type writer struct{ f *os.File }

func (w *writer) Write(p []byte) (int, error) { return w.f.Write(p) }
