package main

import (
	"errors"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"den/internal/engine"
)

// A terminal is den's own, while a container has one that it shows.
type terminal struct {
	in, out *os.File
	sizes   chan engine.Size
	changed chan os.Signal
	done    chan struct{}
	wg      sync.WaitGroup
	restore func()
}

// checkTerminal refuses, as docker does, a terminal for the program where its
// input is not one.
func checkTerminal(in *os.File, interactive bool) error {
	if interactive && !term.IsTerminal(int(in.Fd())) {
		return errors.New("the input device is not a TTY; leave out -t, or run den in a terminal")
	}
	return nil
}

// watchTerminal reports den's terminal's size and its changes.
func watchTerminal(io streams) *terminal {
	t := &terminal{
		in: io.in, out: io.out.File, sizes: make(chan engine.Size, 1), changed: make(chan os.Signal, 1),
		done: make(chan struct{}), restore: func() {},
	}
	if !term.IsTerminal(int(t.out.Fd())) {
		return t
	}
	signal.Notify(t.changed, unix.SIGWINCH)
	t.changed <- unix.SIGWINCH
	t.wg.Go(func() {
		for {
			select {
			case <-t.changed:
				select {
				case t.sizes <- t.size():
				case <-t.done:
					return
				}
			case <-t.done:
				return
			}
		}
	})
	return t
}

// size is zero where there is no terminal.
func (t *terminal) size() engine.Size {
	cols, rows, err := term.GetSize(int(t.out.Fd()))
	if err != nil || cols < 0 || rows < 0 {
		return engine.Size{}
	}
	return engine.Size{Rows: uint16(min(rows, 0xffff)), Cols: uint16(min(cols, 0xffff))}
}

// raw gives every key to the program: its own terminal makes signals of them.
func (t *terminal) raw() error {
	fd := int(t.in.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	// A terminal that went away has nothing to restore.
	t.restore = sync.OnceFunc(func() { _ = term.Restore(fd, state) })
	return nil
}

func (t *terminal) close() {
	signal.Stop(t.changed)
	close(t.done)
	t.wg.Wait()
	t.restore()
}
