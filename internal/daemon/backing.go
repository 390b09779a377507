package daemon

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/store"
	"den/internal/store/backing"
)

// storeRoot is the directory that the user names, or would.
func storeRoot(o Options) string {
	if o.StoreRoot != "" {
		return o.StoreRoot
	}
	return store.DefaultRoot()
}

// place is where the store is: in storeRoot, or on the image that lies there.
func place(o Options) (root string, b *backing.Backing, err error) {
	root = storeRoot(o)
	if b, err = backing.Find(root); b != nil {
		root = b.Store()
	}
	return root, b, err
}

// enterBacking sees to it that the process has the store's image mounted.
func enterBacking(o Options) error {
	_, b, err := place(o)
	if b == nil || err != nil {
		return err
	}
	return sandbox.Explain(probe.Confinement(), b.Enter(os.Args, os.Environ()))
}

// mounted is place for who is about to open the store.
func mounted(o Options) (string, *backing.Backing, error) {
	for _, dir := range o.BaseStores {
		if b, err := backing.Find(dir); b != nil {
			return "", nil, fmt.Errorf("base store %s: it is on a loop device, and only a store that is written can be; "+
				"make it the store (DEN_STORE), or leave out --base-store (DEN_BASE_STORE): %w", dir, errdefs.ErrFailedPrecondition)
		} else if err != nil {
			return "", nil, err
		}
	}
	root, b, err := place(o)
	if b == nil || err != nil || b.Mounted() {
		return root, b, err
	}
	if o.NoTrees != nil { // what Enter said
		return "", nil, o.NoTrees
	}
	return "", nil, fmt.Errorf("store %s: its image is not mounted: %w", b.Dir(), errdefs.ErrFailedPrecondition)
}

// CreateStore gives the store's directory an image of sizeBytes on a loop device, or a
// larger one, and returns its path.
func CreateStore(_ context.Context, o Options, sizeBytes int64) (string, error) {
	b, err := backing.Create(storeRoot(o), sizeBytes)
	if err != nil {
		return "", sandbox.Explain(probe.Confinement(), err)
	}
	return b.Dir(), nil
}
