package progress

import (
	"strings"

	"github.com/containerd/errdefs"
)

// Plain leaves the names of errors' classes out of a text whose lines end in one: a
// class is for callers, and the sentence before it for people.
func Plain(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		for _, class := range []error{
			errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable,
			errdefs.ErrAlreadyExists, errdefs.ErrNotImplemented, errdefs.ErrResourceExhausted,
		} {
			lines[i] = strings.TrimSuffix(lines[i], ": "+class.Error())
		}
	}
	return strings.Join(lines, "\n")
}
