//go:build !stress

package store

// broken says that a step of the protocol is to be left out, by name. That
// happens in the stress test's build only, which must notice.
func broken(string) bool { return false }

func lateRescue(*lease) {}
