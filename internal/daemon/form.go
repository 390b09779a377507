package daemon

import (
	"cmp"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"den/internal/sandbox"
)

// The forms of layers' trees that a user may force.
const (
	formDirectory = "directory"
	formImage     = "image"
)

// images reports whether layers' trees are images in this process: where the rung is the
// sentry, which reads them and nothing else, and where there is no rung and the
// process could not give a tree's files to their owners. What Enter has not
// looked at is a process that can do everything.
func (o Options) images() (bool, error) {
	switch form := cmp.Or(o.StoreForm, os.Getenv("DEN_STORE_FORM")); form {
	case "", "auto":
	case formDirectory:
		return false, nil
	case formImage:
		return true, nil
	default:
		return false, fmt.Errorf("store form %.40q: unknown, want auto, %s or %s: %w", form, formDirectory, formImage, errdefs.ErrInvalidArgument)
	}
	s := o.Surroundings
	if s == nil {
		return false, nil
	}
	if s.Err != nil {
		return !sandbox.OwnsTrees(s.Facts), nil
	}
	return s.Choice.Rung == sandbox.RungSentry, nil
}
