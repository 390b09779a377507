package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"

	"den/internal/progress"
	"den/internal/sandbox"
)

// A statusError is an error with a sentence for clients that is docker's, and nothing else.
type statusError struct {
	class   error
	message string
}

func (e *statusError) Error() string { return e.message }
func (e *statusError) Unwrap() error { return e.class }

func invalid(format string, a ...any) error {
	return &statusError{errdefs.ErrInvalidArgument, fmt.Sprintf(format, a...)}
}

func notFound(format string, a ...any) error {
	return &statusError{errdefs.ErrNotFound, fmt.Sprintf(format, a...)}
}

func conflict(format string, a ...any) error {
	return &statusError{errdefs.ErrConflict, fmt.Sprintf(format, a...)}
}

func forbidden(format string, a ...any) error {
	return &statusError{errdefs.ErrPermissionDenied, fmt.Sprintf(format, a...)}
}

func unavailable(format string, a ...any) error {
	return &statusError{errdefs.ErrUnavailable, fmt.Sprintf(format, a...)}
}

func unimplemented(format string, a ...any) error {
	return &statusError{errdefs.ErrNotImplemented, fmt.Sprintf(format, a...)}
}

// statusOf is the status that docker's clients expect for err's class. That a container's program cannot be run is the
// request's fault.
func statusOf(err error) int {
	var program *sandbox.ExecError
	switch {
	case errors.As(err, &program):
		return http.StatusBadRequest
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err), errdefs.IsAborted(err):
		return http.StatusConflict
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers with err. Once an answer has begun the connection is all there is to
// say it with: it ends without the body's end.
func (s *Server) fail(w *sentHeader, c *call, err error) {
	if c.hijacked {
		s.Log.Debug("stream ended", "path", c.URL.Path, "error", err)
		return
	}
	if w.sent {
		s.Log.Debug("answer ended", "path", c.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
	if errors.Is(err, context.Canceled) && c.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody is there to read it
	}
	status := statusOf(err)
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	if status == http.StatusInternalServerError {
		s.Log.Error("request failed", "method", c.Method, "path", c.URL.Path, "error", err)
	}
	writeError(w, status, progress.Plain(err.Error()))
}

// writeError writes docker's error body.
func writeError(w http.ResponseWriter, status int, message string) {
	// An error's headers are not those of the answer that did not come.
	w.Header().Del("Content-Length")
	_ = writeJSON(w, status, common.ErrorResponse{Message: message}) // the client may be gone
}

// writeJSON writes one JSON value as docker does: on a line of its own, <, > and & as they are.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// fileError says in docker's words that a path is not in a container, or is not what
// it should be.
func fileError(err error, path, name string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notFound("Could not find the file %s in container %s", path, name)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, fs.ErrInvalid):
		return invalid("%v", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return forbidden("%v", err)
	}
	return err
}
