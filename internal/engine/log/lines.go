package log

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// MaxLine is where a line without an end is cut, in bytes, as docker does.
const MaxLine = 16 << 10

// A Line is one line of a stream with its end, or a part of MaxLine bytes, or what
// a run has left without an end. Text is valid until the next call.
type Line struct {
	Stream Stream
	// Time is when its first byte came.
	Time time.Time
	Text []byte
}

// A Selection says which lines are wanted.
type Selection struct {
	// Stdout and Stderr choose streams; neither is both.
	Stdout, Stderr bool
	// Since and Until, if set, bound when a line was written.
	Since, Until time.Time
	// Tail is how many of the last lines are wanted; negative is all.
	Tail int
}

func (s Selection) has(stream Stream) bool {
	return s.Stdout == s.Stderr || stream == Stdout && s.Stdout || stream == Stderr && s.Stderr
}

// Lines puts chunks together to lines, stream by stream.
type Lines struct {
	cursor  *Cursor
	want    Selection
	pending [Stderr + 1]partial
	// chunk is what is left of the current one, marks the streams that a mark has yet to end.
	chunk Chunk
	marks []Stream
	skip  int
	line  []byte
}

type partial struct {
	text  []byte
	since time.Time
	// cut says that the line began before the place where reading began.
	cut bool
}

// NewLines reads lines at c, which stays the caller's. With a tail it finds the place first.
func NewLines(c *Cursor, want Selection) (*Lines, error) {
	l := &Lines{cursor: c, want: want}
	if want.Tail < 0 {
		return l, nil
	}
	return l, l.toTail()
}

// Next returns the next line; io.EOF says that there is no more now, but for what
// Rest returns.
func (l *Lines) Next() (Line, error) {
	for {
		line, ok, err := l.one()
		if err != nil || !ok {
			return Line{}, errors.Join(err, eof(ok))
		}
		if line.Time.Before(l.want.Since) || !l.want.Until.IsZero() && line.Time.After(l.want.Until) {
			continue
		}
		if l.skip > 0 {
			l.skip--
			continue
		}
		return line, nil
	}
}

func eof(ok bool) error {
	if ok {
		return nil
	}
	return io.EOF
}

// one is the next line; false if there is none now.
func (l *Lines) one() (Line, bool, error) {
	for {
		if len(l.marks) > 0 {
			s := l.marks[0]
			l.marks = l.marks[1:]
			if line, ok := l.flush(s); ok {
				return line, true, nil
			}
			continue
		}
		if line, ok := l.cutLine(); ok {
			return line, true, nil
		}
		chunk, err := l.cursor.Next()
		if errors.Is(err, io.EOF) {
			return Line{}, false, nil
		}
		if err != nil {
			return Line{}, true, err
		}
		switch {
		case chunk.Stream == Mark:
			l.marks = []Stream{Stdout, Stderr}
		case chunk.Stream <= Stderr && l.want.has(chunk.Stream):
			l.chunk = chunk
		}
	}
}

// cutLine takes a line from the chunk; false when the chunk is used up.
func (l *Lines) cutLine() (Line, bool) {
	for len(l.chunk.Data) > 0 {
		p := &l.pending[l.chunk.Stream]
		n := min(MaxLine-len(p.text), len(l.chunk.Data))
		end := bytes.IndexByte(l.chunk.Data[:n], '\n')
		if end >= 0 {
			n = end + 1
		}
		if len(p.text) == 0 {
			p.since = l.chunk.Time
		}
		p.text = append(p.text, l.chunk.Data[:n]...)
		l.chunk.Data = l.chunk.Data[n:]
		if end < 0 && len(p.text) < MaxLine {
			continue
		}
		if line, ok := l.flush(l.chunk.Stream); ok {
			return line, true
		}
	}
	return Line{}, false
}

// flush ends the pending line of a stream.
func (l *Lines) flush(s Stream) (Line, bool) {
	p := &l.pending[s]
	if len(p.text) == 0 {
		return Line{}, false
	}
	l.line = append(l.line[:0], p.text...)
	cut := p.cut
	p.text, p.cut = p.text[:0], cut && l.line[len(l.line)-1] != '\n'
	return Line{s, p.since, l.line}, !cut
}

// Rest returns what has no end yet, stream by stream: false when there is no more.
func (l *Lines) Rest() (Line, bool) {
	for _, s := range []Stream{Stdout, Stderr} {
		line, ok := l.flush(s)
		if ok && l.skip == 0 && !line.Time.Before(l.want.Since) && (l.want.Until.IsZero() || !line.Time.After(l.want.Until)) {
			return line, true
		}
	}
	return Line{}, false
}
