package sentry

import (
	"fmt"

	"gvisor.dev/gvisor/runsc/boot/filter"
)

// installFilter loads the sentry's own filter of system calls: what a payload
// can reach by taking over the sentry is bounded by it.
func installFilter(o filter.Options) error {
	if err := filter.Install(o, nil); err != nil {
		return fmt.Errorf("the sentry's filter: %w", err)
	}
	return nil
}
