//go:build !stress

package store

import "context"

// stressBuild says that tests may take minutes.
const stressBuild = false

// extraChildren are none but in the stress build.
func extraChildren() map[string]func(context.Context, string) error { return nil }
