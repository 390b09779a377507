// Package secrets finds nothing. It stands in for a module that only compose's
// publish command uses, which no test here calls, and that not every module proxy has.
package secrets

import "io"

// DetectedSecret is never found.
type DetectedSecret struct{ Key, Type, Value string }

// A Detector looks at values.
type Detector interface {
	ScanMap(map[string]string) ([]DetectedSecret, error)
}

// A Scanner looks at files.
type Scanner interface {
	ScanFile(path string) ([]DetectedSecret, error)
	ScanReader(r io.Reader) ([]DetectedSecret, error)
}

// None is both.
type None struct{}

// ScanMap finds nothing.
func (None) ScanMap(map[string]string) ([]DetectedSecret, error) { return nil, nil }

// ScanFile finds nothing.
func (None) ScanFile(string) ([]DetectedSecret, error) { return nil, nil }

// ScanReader finds nothing.
func (None) ScanReader(io.Reader) ([]DetectedSecret, error) { return nil, nil }
