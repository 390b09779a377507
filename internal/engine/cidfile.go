package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
)

// A cidFile takes a container's ID, for a caller that wants to find it again.
// It is reserved before anything else is done, and gone again if there is no container.
type cidFile struct {
	file    *os.File // nil: none is wanted
	written bool
}

// newCIDFile refuses a file that exists, as docker does.
func newCIDFile(name string) (*cidFile, error) {
	if name == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil, &sentence{"container ID file found, make sure the other container isn't running or delete " + name, errdefs.ErrAlreadyExists}
	}
	if err != nil {
		return nil, fmt.Errorf("container ID file: %w", err)
	}
	return &cidFile{file: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.file == nil {
		return nil
	}
	if _, err := c.file.WriteString(id); err != nil {
		return fmt.Errorf("container ID file: %w", err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close(gone bool) error {
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	if gone || !c.written {
		err = errors.Join(err, os.Remove(c.file.Name()))
	}
	if err != nil {
		return fmt.Errorf("container ID file: %w", err)
	}
	return nil
}
