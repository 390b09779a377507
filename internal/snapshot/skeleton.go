package snapshot

import "den/internal/oci"

// Active is a root file system in use.
type Active struct {
	// Root is mounted at "/".
	Root  oci.Mount
	upper string
}

// Upper is the directory that holds the changes after Changes.
func (a *Active) Upper() string { return a.upper }

// Close removes what the driver made beside the draft.
func (a *Active) Close() error { return nil }

// Drivers lists the drivers, best first.
func Drivers() []Driver { return nil }

// Choose picks a driver and says why.
func Choose(f Facts) (Driver, string) { return nil, "" }
