package log

import (
	"bytes"
	"errors"
	"io"
)

// toTail puts the cursor where the last lines begin. It reads the log backwards as far
// as it has to, and then once forwards, to count.
func (l *Lines) toTail() error {
	at, err := l.backwards()
	if err != nil || at.number == 0 {
		return err
	}
	whole := l.want
	l.want.Tail = -1
	if err := l.seek(at); err != nil {
		return err
	}
	count := 0
	for {
		_, err := l.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		count++
	}
	for {
		if _, ok := l.Rest(); !ok {
			break
		}
		count++
	}
	l.skip = max(0, count-whole.Tail)
	return l.seek(at)
}

// A position is an entry of a segment.
type position struct {
	number int
	entry  int64
	// whole says that it is the log's beginning.
	whole bool
}

// seek goes to at, where lines are cut that began before.
func (l *Lines) seek(at position) error {
	if err := l.cursor.enter(at.number); err != nil {
		return err
	}
	e, err := l.cursor.seg.entry(at.entry)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	l.cursor.next, l.cursor.at = int(at.entry), e.offset
	l.chunk, l.marks = Chunk{}, nil
	for i := range l.pending {
		l.pending[i] = partial{cut: !at.whole}
	}
	return nil
}

// backwards finds an entry from which on there are at least as many lines as are wanted.
func (l *Lines) backwards() (at position, err error) {
	numbers, err := segments(l.cursor.dir)
	if isMissing(err) || err == nil && len(numbers) == 0 {
		return at, nil
	}
	if err != nil {
		return at, err
	}
	if !l.want.Since.IsZero() || !l.want.Until.IsZero() {
		return l.oldest(numbers)
	}
	// Of each stream the first line may be cut.
	missing := l.want.Tail + 2
	for i := len(numbers) - 1; i >= 0; i-- {
		s, err := openSegment(l.cursor.dir, numbers[i], 0)
		if isMissing(err) {
			break // it was dropped meanwhile, and those before
		}
		if err != nil {
			return at, err
		}
		found, err := l.count(s, &missing)
		if err := errors.Join(err, s.close()); err != nil {
			return at, err
		}
		at = position{number: numbers[i], entry: found}
		if missing <= 0 {
			return at, nil
		}
	}
	at.whole = true
	return at, nil
}

func (l *Lines) oldest(numbers []int) (position, error) {
	for _, n := range numbers {
		s, err := openSegment(l.cursor.dir, n, 0)
		if !isMissing(err) {
			return position{number: n, whole: true}, errors.Join(err, s.close())
		}
	}
	return position{}, nil
}

// count goes back through a segment until no line is missing, or to its first entry.
func (l *Lines) count(s *segment, missing *int) (int64, error) {
	end, err := s.size()
	if err != nil {
		return 0, err
	}
	n, err := s.entries()
	if err != nil {
		return 0, err
	}
	buffer := make([]byte, maxChunk)
	for n > 0 && *missing > 0 {
		n--
		e, err := s.entry(n)
		if err != nil {
			return 0, err
		}
		if e.stream == Mark || e.stream > Stderr || !l.want.has(e.stream) {
			end = min(end, e.offset)
			continue
		}
		for at := e.offset; at < end; {
			got, err := s.data.ReadAt(buffer[:min(maxChunk, end-at)], at)
			if got == 0 {
				return 0, err
			}
			*missing -= bytes.Count(buffer[:got], []byte{'\n'})
			at += int64(got)
		}
		end = min(end, e.offset)
	}
	return n, nil
}
