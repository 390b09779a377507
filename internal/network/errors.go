package network

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// The sentences are dockerd's, because clients and scripts match them, and so
// are the classes: what dockerd answers with 403 is errdefs.ErrPermissionDenied.

func errNotFound(name string) error {
	return classed{fmt.Sprintf("network %s not found", name), errdefs.ErrNotFound}
}

func errNameTaken(name string) error {
	return classed{fmt.Sprintf("network with name %s already exists", name), errdefs.ErrAlreadyExists}
}

func errActive(n *Network, es []Endpoint) error {
	names := make([]string, 0, len(es))
	for _, e := range es {
		names = append(names, fmt.Sprintf("name:%q id:%q", e.Name, short(e.Container)))
	}
	return classed{fmt.Sprintf("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(names, ", ")), errdefs.ErrPermissionDenied}
}

func errOverlap() error {
	return classed{"invalid pool request: Pool overlaps with other one on this address space", errdefs.ErrPermissionDenied}
}

func errPoolsUsedUp() error {
	return classed{"all predefined address pools have been fully subnetted; name a subnet (--subnet), or give den serve more of them (--default-address-pool)", errdefs.ErrInvalidArgument}
}

func errAddressInUse() error {
	return classed{"Address already in use", errdefs.ErrPermissionDenied}
}

func errNoAddress(n *Network) error {
	return classed{fmt.Sprintf("no available IPv4 addresses on this network's address pools: %s (%s)", n.Name, n.ID), errdefs.ErrResourceExhausted}
}

func errInvalid(format string, args ...any) error {
	return classed{fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument}
}

func errForbidden(format string, args ...any) error {
	return classed{fmt.Sprintf(format, args...), errdefs.ErrPermissionDenied}
}

// classed is a sentence that stays as it is, of a class that callers branch on.
type classed struct {
	text  string
	class error
}

func (e classed) Error() string { return e.text }
func (e classed) Unwrap() error { return e.class }

// short is the form of an id that docker shows, and that resolves as a name.
func short(id string) string {
	return id[:min(len(id), 12)]
}
