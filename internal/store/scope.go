package store

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// defaultScope is how people write the scope without a name.
const defaultScope = "default"

var plainScope = shape{1, 128, alnum, alnum + "._/@:-"}

// ParseScope reads a cache scope: "default", or nothing, is the one without a
// name, "".
func ParseScope(text string) (string, error) {
	if text == "" || text == defaultScope {
		return "", nil
	}
	if !plainScope.matches(text) {
		return "", fmt.Errorf("cache scope %.80q: want letters, digits and ._/@:-, at most 128: %w", text, errdefs.ErrInvalidArgument)
	}
	return text, nil
}

// ScopedKey is where the record of key is kept in a scope; without a scope it
// is the key itself.
func ScopedKey(scope string, key oci.Digest) oci.Digest {
	if scope == "" {
		return key
	}
	return digest.FromString("den scope\x00" + scope + "\x00" + string(key))
}
