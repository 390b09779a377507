package snapshot

import (
	"context"
	"fmt"
	"os"

	"den/internal/oci"
)

// images describes roots for a user-space kernel, which merges layers in image form by
// itself: nothing is mounted, and the changes are an image, too.
type images struct{}

// Images is the driver for sandboxes that merge layers in image form by themselves, as
// the sentry does.
func Images() Driver { return images{} }

// Name is "erofs".
func (images) Name() string { return "erofs" }

// Prepare describes an overlay whose upper is written, when the sandbox has ended,
// as an image under the name of the draft's tree.
func (images) Prepare(_ context.Context, stack []Tree, d Draft) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("prepare erofs: %w", err)
	}
	return &Active{upper: d.FS(), Root: imageMount(lower, d.FS(), hold)}, nil
}

// View describes a read-only overlay.
func (images) View(_ context.Context, stack []Tree) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("view erofs: %w", err)
	}
	return &Active{Root: imageMount(lower, "", hold)}, nil
}

func imageMount(lower []string, upper string, hold []*os.File) oci.Mount {
	m := oci.Mount{Type: "overlay", Target: "/", Lower: lower, Upper: upper, Hold: hold}
	if upper == "" {
		m.Options = []string{"ro"}
	}
	return m
}

// Changes has nothing to do: the sandbox has written the difference.
func (images) Changes(_ context.Context, a *Active) error {
	if _, err := os.Lstat(a.upper); err != nil {
		return fmt.Errorf("changes: the sandbox left none behind: %w", err)
	}
	return nil
}
