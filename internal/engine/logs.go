package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

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
	tty    bool
	dir    *store.ContainerDir
	reader *logReader
}

// TTY says that the container has a terminal: all its output is stdout.
func (l *LogReader) TTY() bool { return l.tty }

// Copy copies the log; each Write is one line of one stream, or a part of a very long one.
func (l *LogReader) Copy(ctx context.Context, stdout, stderr io.Writer) error {
	l.reader.stdout, l.reader.stderr = stdout, stderr
	return l.reader.read(ctx)
}

// Close frees the reader.
func (l *LogReader) Close() error {
	l.reader.close()
	return l.dir.Close()
}

// Logs reads what a detached container has written. Containers that were not
// detached have no log: their output went to whoever ran them.
func (e *Engine) Logs(_ context.Context, nameOrID string, o LogOptions) (*LogReader, error) {
	dir, err := e.open(nameOrID)
	if err != nil {
		return nil, err
	}
	return &LogReader{dir: dir, reader: &logReader{store: e.Store, dir: dir, o: o}}, nil
}

// A logReader reads a log from its beginning and, if asked, along with its writer.
type logReader struct {
	store          *store.Store
	dir            *store.ContainerDir
	o              LogOptions
	stdout, stderr io.Writer
	file           *os.File
	buf            *bufio.Reader
	partial        []byte
	skip           int // lines before the tail
}

func (l *logReader) close() {
	if l.file != nil {
		l.file.Close()
	}
}

func (l *logReader) read(ctx context.Context) error {
	if err := l.countTail(); err != nil {
		return err
	}
	// Whether the container runs is asked first: what it writes before it ends
	// is there when the answer is no.
	for first := true; ; first = false {
		running, err := l.running()
		if err != nil {
			return err
		}
		if err := l.drain(first); err != nil {
			return err
		}
		if !running || !l.o.Follow || !l.o.Until.IsZero() && time.Now().After(l.o.Until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollEvery):
		}
	}
}

// running says whether more may come. The lock is given back at once.
func (l *logReader) running() (bool, error) {
	if !l.o.Follow {
		return false, nil
	}
	probe, err := l.store.OpenContainer(l.dir.ID())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mine, err := probe.TryLock()
	return !mine, errors.Join(err, probe.Close())
}

// countTail finds how many lines come before the tail.
func (l *logReader) countTail() error {
	if l.o.Tail < 0 {
		return nil
	}
	counter := &logReader{dir: l.dir, o: l.o, stdout: io.Discard, stderr: io.Discard}
	counter.o.Tail, counter.o.Timestamps = -1, false
	lines := &lineCounter{}
	counter.stdout, counter.stderr = lines, lines
	defer counter.close()
	if err := counter.drain(true); err != nil {
		return err
	}
	l.skip = max(0, lines.n-l.o.Tail)
	return nil
}

type lineCounter struct{ n int }

func (c *lineCounter) Write(p []byte) (int, error) {
	c.n++
	return len(p), nil
}

// drain copies what is there, beginning with the older file if it is the first
// time, and goes over to the next file when the writer has.
func (l *logReader) drain(fromOld bool) error {
	if fromOld {
		old, err := l.openFile(oldLogFile)
		if err != nil {
			return err
		}
		if old {
			if err := l.copy(); err != nil {
				return err
			}
		}
	}
	for {
		if l.file != nil {
			if err := l.copy(); err != nil {
				return err
			}
			if current, err := l.isCurrent(); current || err != nil {
				return err
			}
			// What was written between the copy and the renaming.
			if err := l.copy(); err != nil {
				return err
			}
		}
		opened, err := l.openFile(logFile)
		if err != nil || !opened {
			return err
		}
	}
}

// isCurrent says that the open file is the one that is written to, or that
// there is none any more.
func (l *logReader) isCurrent() (bool, error) {
	now, err := os.Lstat(filepath.Join(l.dir.Path(), logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("container log: %w", err)
	}
	fi, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("container log: %w", err)
	}
	return os.SameFile(now, fi), nil
}

func (l *logReader) openFile(name string) (bool, error) {
	f, err := os.Open(filepath.Join(l.dir.Path(), name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("container log: %w", err)
	}
	l.close()
	l.file, l.buf, l.partial = f, bufio.NewReader(f), nil
	return true, nil
}

// copy copies to the end of the open file; a line without an end is still being
// written.
func (l *logReader) copy() error {
	for {
		b, err := l.buf.ReadBytes('\n')
		if len(l.partial)+len(b) > maxRecordBytes {
			return fmt.Errorf("container log: a line of more than %d bytes", maxRecordBytes)
		}
		l.partial = append(l.partial, b...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("container log: %w", err)
		}
		var line logLine
		torn := json.Unmarshal(l.partial, &line) != nil // by a crash
		l.partial = l.partial[:0]
		if torn {
			continue
		}
		if err := l.show(line); err != nil {
			return err
		}
	}
}

func (l *logReader) show(line logLine) error {
	if line.Time.Before(l.o.Since) || !l.o.Until.IsZero() && line.Time.After(l.o.Until) {
		return nil
	}
	if l.skip > 0 {
		l.skip--
		return nil
	}
	w := l.stdout
	if line.Stream == "stderr" {
		w = l.stderr
	}
	var b strings.Builder
	if l.o.Timestamps {
		b.WriteString(line.Time.Format(time.RFC3339Nano) + " ")
	}
	b.WriteString(line.Log)
	_, err := io.WriteString(w, b.String())
	return err
}
