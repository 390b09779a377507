//go:build !stress

package durable

// broken says that a step of the protocol is to be left out, by name. That
// happens in the power-loss test's build only, which must notice.
func broken(string) bool { return false }
