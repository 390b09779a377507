package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"den/internal/failpoint"
)

// Clean reports whether dir holds the log of the running kernel, that is,
// whether the suspects of all others have been dealt with.
func Clean(dir, boot string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, boot))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Rebooted reports whether dir holds the log of a kernel other than boot.
func Rebooted(dir, boot string) (bool, error) {
	boots, err := deadBoots(dir, boot)
	return len(boots) > 0, err
}

// Suspects lists, sorted, the objects published under kernels other than boot
// that may not have reached the disk. Malformed markers are left out.
func Suspects(dir, boot string) ([]string, error) {
	boots, err := deadBoots(dir, boot)
	if err != nil {
		return nil, fmt.Errorf("suspects: %w", err)
	}
	var suspects []string
	for _, b := range boots {
		epochs, err := listEpochs(filepath.Join(dir, b))
		if err != nil {
			return nil, fmt.Errorf("suspects: %w", err)
		}
		for name, markers := range epochs {
			if strings.HasPrefix(name, deadPrefix) {
				continue
			}
			for _, m := range markers {
				if object, err := unescape(m); err == nil {
					suspects = append(suspects, object)
				}
			}
		}
	}
	slices.Sort(suspects)
	return slices.Compact(suspects), nil
}

// Acquit forgets the logs of kernels other than boot. The caller has dealt
// with their suspects.
func Acquit(dir, boot string) error {
	boots, err := deadBoots(dir, boot)
	if err != nil {
		return fmt.Errorf("acquit: %w", err)
	}
	for _, b := range boots {
		if err := failpoint.Hit("durable.acquit.remove"); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(dir, b)); err != nil {
			return fmt.Errorf("acquit: %w", err)
		}
	}
	return nil
}

// deadBoots names the logs in dir of kernels other than boot.
func deadBoots(dir, boot string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var boots []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != boot {
			boots = append(boots, e.Name())
		}
	}
	return boots, nil
}
