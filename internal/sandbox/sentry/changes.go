package sentry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/sys"
)

// widePipe is a pipe for many bytes at once, where den may have so large a one (pipe(7)): its two
// ends then wait for each other a third as often.
func widePipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	conn, err := r.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close(), w.Close())
	}
	return r, w, nil
}

// takeChanges writes the layer that the sentry sends.
func (s *running) takeChanges() error {
	o := layer.UnpackOptions{Image: true}
	if st, err := os.Stat(s.root.Upper); err == nil && st.IsDir() {
		o = layer.UnpackOptions{Recorded: !sys.MayChown()}
	}
	// Where den may not chown, the tree is not all that its records say.
	tell := s.wrote
	if o.Recorded {
		tell = nil
	}
	var a layer.Applied
	var uerr error
	if tell != nil {
		a, uerr = layer.BuildTar(context.Background(), s.root.Upper, s.layer, o)
	} else {
		uerr = layer.CreateTar(context.Background(), s.root.Upper, s.layer, o)
	}
	if uerr != nil { // or the sentry waits for a reader
		_, _ = io.Copy(io.Discard, s.layer)
	}
	ev, err := s.next()
	switch {
	case err != nil:
		return errors.Join(uerr, fmt.Errorf("the sentry ended: %w", err))
	case ev.Export == nil:
		return errors.Join(uerr, errors.New("the sentry did not say that they are complete"))
	case ev.Export.Err != "":
		return errors.New(ev.Export.Err)
	}
	if uerr == nil && tell != nil {
		tell(a)
	}
	return uerr
}

// dropUpper empties the file that nobody reads any more, while the sentry dies or has ended the sandbox. A file that was
// once cut to nothing, as the sentry cuts this one when it begins, is written to the disk when it is
// closed (auto_da_alloc, ext4_release_file in fs/ext4/file.c), just before all of it is given back.
func (s *running) dropUpper() {
	if s.upper == nil {
		return
	}
	_ = s.upper.Truncate(0) // it goes anyway
	s.upper.Close()
}
