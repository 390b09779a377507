package ops

import (
	"bytes"
	"io"
)

// maxGitLine bounds a line of a server's messages.
const maxGitLine = 4 << 10

// A gitLog passes on each line of a server's messages as it is in the end: a
// server counts by writing over a line, with a carriage return each time.
type gitLog struct {
	to   io.Writer
	line []byte
}

// Write never fails, as the log behind it does not.
func (l *gitLog) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		text, more, end := bytes.Cut(rest, []byte("\n"))
		if i := bytes.LastIndexByte(bytes.TrimRight(text, "\r"), '\r'); i >= 0 {
			l.line, text = l.line[:0], text[i+1:]
		} else if bytes.HasSuffix(l.line, []byte("\r")) {
			l.line = l.line[:0]
		}
		l.line = append(l.line, text[:min(len(text), maxGitLine-len(l.line))]...)
		if end {
			_, _ = l.to.Write(append(bytes.TrimRight(l.line, "\r"), '\n'))
			l.line = l.line[:0]
		}
		rest = more
	}
	return len(p), nil
}
