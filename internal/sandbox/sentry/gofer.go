package sentry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/sandbox/sentry/gofer"
)

// A share is a directory or file of the outer container that a gofer shows to a sentry.
type share struct {
	Path     string
	ReadOnly bool
}

// goferCommand is what den tells a gofer, once: with each share comes its socket.
type goferCommand struct{ Shares []share }

// goferMain is the life of a den-gofer: it serves until its sentry is gone.
func goferMain() error {
	quiet()
	unix.Umask(0)
	c := newControl(fdControl)
	cmd, fds, err := c.next()
	if err != nil {
		return err
	}
	if cmd.Share == nil || len(cmd.Share.Shares) != len(fds) {
		return fmt.Errorf("%d sockets came", len(fds))
	}
	var trees []*gofer.Tree
	ready := &event{Ready: true}
	for _, s := range cmd.Share.Shares {
		t, err := openShare(s)
		if err != nil {
			return c.tell(&event{Failed: describe(err)})
		}
		if w := t.Warning(); w != "" {
			ready.Warnings = append(ready.Warnings, w)
		}
		trees = append(trees, t)
	}
	pace()
	if err := gofer.Confine(); err != nil {
		return c.tell(&event{Failed: describe(err)})
	}
	if err := c.tell(ready); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(trees))
	for i, t := range trees {
		wg.Go(func() { errs[i] = t.Serve(context.Background(), os.NewFile(uintptr(fds[i]), "share")) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// openShare opens what is shared.
func openShare(s share) (*gofer.Tree, error) {
	fd, err := unix.Open(s.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: s.Path, Err: err}
	}
	return gofer.Open(os.NewFile(uintptr(fd), s.Path), gofer.Options{ReadOnly: s.ReadOnly})
}
