package image

import (
	"testing"

	"den/internal/store/storetest"
)

// An image is the same whatever the form of its layers' trees.
func TestTheSameInImageForm(t *testing.T) {
	storetest.AgainInImageForm(t, "^Test(Pull|Tree|Saved|Imported|Files|Built|Lost|Squash|Dropped|Tampered|Concurrent|Rewrite|BlobOf)")
}
