package engine

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/engine/log"
	"den/internal/store"
)

// LogOptions say what of a container's log is wanted.
type LogOptions struct {
	// Follow goes on until the container ends.
	Follow bool
	// Tail is how many of the last lines are wanted; negative is all.
	Tail int
	// Since and Until, if set, bound when a line was written.
	Since, Until time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
	// Stdout and Stderr choose streams; neither is both.
	Stdout, Stderr bool
}

// A LogReader reads a container's log. Close it.
type LogReader struct {
	o      LogOptions
	tty    bool
	cursor *log.Cursor
	lines  *log.Lines
	// ended is closed when the container is; nil where only dir's lock shows it.
	ended <-chan struct{}
	store *store.Store
	dir   *store.ContainerDir
}

// Logs reads what a container has written. Containers of den run that were not
// detached have no log: their output went to whoever ran them.
func (e *Engine) Logs(ctx context.Context, nameOrID string, o LogOptions) (_ *LogReader, err error) {
	l, err := e.resident(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	r := &LogReader{o: o, store: e.Store}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if l != nil {
		err = r.open(l)
	} else {
		err = r.openForeign(e, nameOrID)
	}
	if err != nil {
		return nil, err
	}
	r.lines, err = log.NewLines(r.cursor, log.Selection{Stdout: o.Stdout, Stderr: o.Stderr, Since: o.Since, Until: o.Until, Tail: o.Tail})
	return r, err
}

// open reads along with the run of a container that this process looks after.
func (r *LogReader) open(l *life) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.tty = l.request.TTY
	if l.request.LogConfig.Driver == "none" {
		return unsupported("configured logging driver does not support reading")
	}
	if l.run != nil {
		r.ended = l.run.ended
		r.cursor, err = l.run.streams.log.Cursor()
		return err
	}
	closed := make(chan struct{})
	close(closed)
	r.ended = closed
	r.cursor, err = log.Read(l.logPath())
	return err
}

func (r *LogReader) openForeign(e *Engine, nameOrID string) (err error) {
	if r.dir, err = e.open(nameOrID); err != nil {
		return missing(nameOrID, err)
	}
	rec, err := readRecord(r.dir)
	if err != nil {
		return err
	}
	r.tty = rec.TTY
	r.cursor, err = log.Read(filepath.Join(r.dir.Path(), logDir))
	return err
}

// TTY says that the container has a terminal: all its output is stdout.
func (r *LogReader) TTY() bool { return r.tty }

// Copy copies the log; each Write is one line of one stream, or a part of a very long one.
func (r *LogReader) Copy(ctx context.Context, stdout, stderr io.Writer) error {
	for {
		changed := r.cursor.Changed()
		// Whether the container runs is asked first: what it writes before it ends
		// is there when the answer is no.
		running, err := r.running()
		if err != nil {
			return err
		}
		if err := r.drain(stdout, stderr); err != nil {
			return err
		}
		past := !r.o.Until.IsZero() && time.Now().After(r.o.Until)
		if !running {
			return r.rest(stdout, stderr)
		}
		if !r.o.Follow || past {
			return nil
		}
		if err := r.pause(ctx, changed); err != nil {
			return err
		}
	}
}

// pause waits until there may be more.
func (r *LogReader) pause(ctx context.Context, changed <-chan struct{}) error {
	var poll, until <-chan time.Time
	if changed == nil {
		poll = time.After(pollEvery)
	}
	if !r.o.Until.IsZero() {
		until = time.After(time.Until(r.o.Until))
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
	case <-r.ended:
	case <-poll:
	case <-until:
	}
	return nil
}

// running says whether more may come. A lock is given back at once.
func (r *LogReader) running() (bool, error) {
	if r.ended != nil {
		return !isClosed(r.ended), nil
	}
	probe, err := r.store.OpenContainer(r.dir.ID())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mine, err := probe.TryLock()
	return !mine && !gone(probe), errors.Join(err, probe.Close())
}

func (r *LogReader) drain(stdout, stderr io.Writer) error {
	for {
		line, err := r.lines.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = r.show(line, stdout, stderr)
		}
		if err != nil {
			return err
		}
	}
}

// rest shows what has no line's end: nothing more comes.
func (r *LogReader) rest(stdout, stderr io.Writer) error {
	for {
		line, ok := r.lines.Rest()
		if !ok {
			return nil
		}
		if err := r.show(line, stdout, stderr); err != nil {
			return err
		}
	}
}

func (r *LogReader) show(line log.Line, stdout, stderr io.Writer) error {
	w := stdout
	if line.Stream == log.Stderr {
		w = stderr
	}
	if w == nil {
		return nil
	}
	text := line.Text
	if r.o.Timestamps {
		text = append(line.Time.AppendFormat(nil, timestampFormat), ' ')
		text = append(text, line.Text...)
	}
	_, err := w.Write(text)
	return err
}

// timestampFormat is docker's: RFC 3339 with all nine digits.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// Close frees the reader.
func (r *LogReader) Close() error {
	var errs []error
	if r.cursor != nil {
		errs = append(errs, r.cursor.Close())
	}
	if r.dir != nil {
		errs = append(errs, r.dir.Close())
	}
	return errors.Join(errs...)
}
