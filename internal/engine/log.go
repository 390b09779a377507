package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// logFile is a detached container's output, in docker's json-file format: one
// object a line. logLimitBytes bounds it: when it is reached, the log becomes
// the old one, and the one before is dropped.
const (
	logFile       = "container-json.log"
	oldLogFile    = logFile + ".1"
	logLimitBytes = 64 << 20
	logLineBytes  = 16 << 10 // docker splits longer lines there, too
)

type logLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// A logWriter appends to a container's log from both streams.
type logWriter struct {
	mu   sync.Mutex
	dir  string
	file *os.File
	size int64
	// limit is logLimitBytes.
	limit int64
	err   error
}

func openLog(dir string) (*logWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("container log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("container log: %w", err), f.Close())
	}
	return &logWriter{dir: dir, file: f, size: fi.Size(), limit: logLimitBytes}, nil
}

// stream returns the writer of one stream ("stdout" or "stderr"), and a
// function that writes what is left of its last line.
func (l *logWriter) stream(name string) (io.Writer, func()) {
	s := &logStream{log: l, name: name}
	return s, s.flush
}

type logStream struct {
	log     *logWriter
	name    string
	pending []byte
}

// Write splits p into lines. It is called by one goroutine.
func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := logLineBytes - len(s.pending)
		cut := min(room, len(p))
		end := false
		for i, b := range p[:cut] {
			if b == '\n' {
				cut, end = i+1, true
				break
			}
		}
		s.pending = append(s.pending, p[:cut]...)
		p = p[cut:]
		if end || len(s.pending) == logLineBytes {
			s.flush()
		}
	}
	return n, nil
}

func (s *logStream) flush() {
	if len(s.pending) == 0 {
		return
	}
	s.log.write(logLine{Log: string(s.pending), Stream: s.name, Time: time.Now().UTC()})
	s.pending = s.pending[:0]
}

// write appends a line. What cannot be written is dropped, as docker does: a full
// disk must not end the program. The first reason is told at the end.
func (l *logWriter) write(line logLine) {
	b, err := json.Marshal(line)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.size > l.limit {
		err = l.rotate()
	}
	if err == nil {
		var n int
		if n, err = l.file.Write(append(b, '\n')); err != nil {
			// Half a line would make the next one unreadable, too.
			err = errors.Join(err, l.file.Truncate(l.size))
			n = 0
		}
		l.size += int64(n)
	}
	if err != nil && l.err == nil {
		l.err = fmt.Errorf("container log: lines are missing: %w", err)
	}
}

func (l *logWriter) rotate() error {
	if err := os.Rename(filepath.Join(l.dir, logFile), filepath.Join(l.dir, oldLogFile)); err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	next, err := openLog(l.dir)
	if err != nil {
		return err
	}
	err = l.file.Close()
	l.file, l.size = next.file, 0
	return err
}

func (l *logWriter) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.file.Close())
}
