// Package durable makes file changes that survive a crash, without an fsync
// for each.
//
// Changes are grouped in epochs. Before an object gets its name, an empty
// marker is made in the directory of the current epoch; both are metadata,
// which journaling file systems commit in order, so an object is never on disk
// without its marker. A syncer, now and then, closes the epoch, syncs the file
// system and retires the markers. What is left under the name of a dead kernel
// (sync/<boot id>) after a reboot are the suspects: all that may be torn.
// The format and its limits are in docs/design/store.md.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"den/internal/failpoint"
)

// A Mode says how much a power cut may take.
type Mode string

const (
	// Epoch, the default, may lose what the last seconds published, and never
	// serves it torn.
	Epoch Mode = "epoch"
	// Strict syncs before each publication.
	Strict Mode = "strict"
	// None is for stores that end with the machine, such as those on tmpfs.
	None Mode = "none"
)

// ParseMode reads a mode; the empty string is Epoch.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Epoch, nil
	case Epoch, Strict, None:
		return m, nil
	}
	return "", fmt.Errorf("durability %q: want %s, %s or %s", s, Epoch, Strict, None)
}

// WriteFile replaces the file at path by data, whole or not at all as other
// processes see it. It does not sync; after a power cut the file may be empty
// unless its publication stood in an epoch.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	tmp := filepath.Join(filepath.Dir(path), ".tmp-"+rand.Text())
	err := failpoint.Hit("durable.writefile.write")
	if err == nil {
		err = os.WriteFile(tmp, data, perm)
	}
	if err == nil {
		err = failpoint.Hit("durable.writefile.rename")
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), remove(tmp))
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
