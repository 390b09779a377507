package engine

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// A sentence is an error whose text says it all, with a class beside it.
type sentence struct {
	text  string
	class error
}

func (s *sentence) Error() string { return s.text }

// Unwrap gives the error its class.
func (s *sentence) Unwrap() error { return s.class }

func invalid(format string, args ...any) error {
	return &sentence{fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument}
}

func conflict(format string, args ...any) error {
	return &sentence{fmt.Sprintf(format, args...), errdefs.ErrConflict}
}

func notFound(format string, args ...any) error {
	return &sentence{fmt.Sprintf(format, args...), errdefs.ErrNotFound}
}

func unsupported(format string, args ...any) error {
	return &sentence{fmt.Sprintf(format, args...), errdefs.ErrNotImplemented}
}

// notModified says that nothing had to be done.
func notModified(format string, args ...any) error {
	return &sentence{fmt.Sprintf(format, args...), errdefs.ErrNotModified}
}

// missing is docker's sentence where err says that there is no container.
func missing(nameOrID string, err error) error {
	if errdefs.IsNotFound(err) {
		return notFound("No such container: %.200s", nameOrID)
	}
	return err
}

// errForbidden is docker's 403.
var errForbidden = errdefs.ErrPermissionDenied
