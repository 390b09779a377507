package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/moby/buildkit/solver/errdefs"
)

// longestLine is how much of a line of a Dockerfile and of a message is shown, in bytes: a
// "Dockerfile" may be anything.
const longestLine = 4096

// explain shows the places of the Dockerfile that a build's error points at, as
// docker does, before the error itself.
func explain(w io.Writer, err error) error {
	for _, s := range errdefs.Sources(err) {
		var b bytes.Buffer
		// A display that cannot be written to is no reason to hide the error.
		_ = s.Print(&b)
		for line := range bytes.Lines(b.Bytes()) {
			_, _ = w.Write(shorten(line))
		}
	}
	return fmt.Errorf("build: %w", &shortError{err})
}

// A shortError says less of what is too long.
type shortError struct{ error }

func (e *shortError) Error() string { return string(shorten([]byte(e.error.Error()))) }

func (e *shortError) Unwrap() error { return e.error }

// shorten leaves out the middle of a line that is too long: a failed command's
// exit code is at the end.
func shorten(line []byte) []byte {
	const head, foot = longestLine * 3 / 4, longestLine / 4
	if len(line) <= longestLine {
		return line
	}
	b := append(bytes.Clone(line[:head]), " ... "...)
	return bytes.ToValidUTF8(append(b, line[len(line)-foot:]...), nil)
}
