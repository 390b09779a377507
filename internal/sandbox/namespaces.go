package sandbox

import "context"

// Options of the namespaces executor.
type Options struct {
	// Choice is what Choose picked.
	Choice Choice
}

// Namespaces runs sandboxes in kernel namespaces, for the rungs privileged and
// userns.
type Namespaces struct {
	o Options
}

// NewNamespaces returns the executor for kernel namespaces.
func NewNamespaces(o Options) (*Namespaces, error) {
	return &Namespaces{o: o}, nil
}

// Name is the rung's.
func (n *Namespaces) Name() string { return string(n.o.Choice.Rung) }

// Start runs r.
func (n *Namespaces) Start(ctx context.Context, r *Request) (Sandbox, error) {
	return nil, nil
}
