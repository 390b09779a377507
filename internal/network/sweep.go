package network

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// sweep removes what processes that died left half made or half removed.
func (ns *Networks) sweep() error {
	lock, err := ns.lockRecords()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	names, err := os.ReadDir(ns.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".tmp-") || strings.HasPrefix(name.Name(), gonePrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(ns.dir, name.Name())))
		}
	}
	return errors.Join(errs...)
}
