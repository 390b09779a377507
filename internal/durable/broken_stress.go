//go:build stress

package durable

import "os"

// broken says that a step of the protocol is to be left out, by name, because
// $DEN_STORE_BROKEN asks for it.
func broken(step string) bool { return os.Getenv("DEN_STORE_BROKEN") == step }
