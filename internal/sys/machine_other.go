//go:build !amd64 && !arm64

package sys

// machineCode is empty: there is no walker for this architecture, and Start
// says so.
func machineCode() []byte { return nil }
