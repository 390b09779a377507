package dockerfile

import (
	"bytes"
	"context"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"

	"den/internal/oci"
)

// maxInstructions bounds a Dockerfile. The frontend's work grows with the
// square of their number: 4,000 take a second, and the 2.7 million that fit
// into its 16 MiB would never end. No stack of layers that can be mounted
// comes near.
const maxInstructions = 5000

// A checkedRef looks at the Dockerfile on its way to the frontend.
type checkedRef struct {
	gwclient.Reference
	dockerfile string
	expansions *expansions
}

// unwrap returns the gateway's own reference.
func unwrap(r gwclient.Reference) gwclient.Reference {
	if w, ok := r.(*checkedRef); ok {
		return w.Reference
	}
	return r
}

// ReadFile reads a file, and refuses a Dockerfile with too many instructions or
// with variables that grow beyond all bounds.
func (r *checkedRef) ReadFile(ctx context.Context, q gwclient.ReadRequest) ([]byte, error) {
	data, err := r.Reference.ReadFile(ctx, q)
	if err != nil || path.Clean(q.Filename) != path.Clean(r.dockerfile) {
		return data, err
	}
	// What cannot be parsed is reported by the frontend, with its place.
	tree, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return data, nil
	}
	if n := len(tree.AST.Children); n > maxInstructions {
		return nil, tooMany(q.Filename, n)
	}
	return data, r.expansions.file(q.Filename, tree.AST)
}

func tooMany(file string, n int) error {
	return fmt.Errorf("%s has %d instructions, at most %d are allowed: %w: %w", file, n, maxInstructions, oci.ErrTooLarge, errdefs.ErrInvalidArgument)
}
