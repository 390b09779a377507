package main

import (
	"fmt"
	"io"

	"github.com/moby/buildkit/solver/errdefs"
)

// explain shows the places of the Dockerfile that a build's error points at, as
// docker does, before the error itself.
func explain(w io.Writer, err error) error {
	for _, s := range errdefs.Sources(err) {
		// A display that cannot be written to is no reason to hide the error.
		_ = s.Print(w)
	}
	return fmt.Errorf("build: %w", err)
}
