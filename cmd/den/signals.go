package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// An interruptError is why a command ended early: somebody asked for it.
type interruptError struct {
	signal unix.Signal
}

func (e *interruptError) Error() string {
	return fmt.Sprintf("canceled by %s", unix.SignalName(e.signal))
}

// interruptible is a context that the first interrupt cancels, so that what is
// half done can be undone; the second ends den at once. The function gives the
// signals back.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	in := make(chan os.Signal, 1)
	notify(in, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case s := <-in:
			signal.Stop(in)
			if sig, ok := s.(unix.Signal); ok {
				cancel(&interruptError{sig})
			}
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(in)
		close(done)
		<-ended
		cancel(nil)
	}
}

// notify delivers signals, but those that den was started to ignore (nohup, a
// shell's background job).
func notify(c chan<- os.Signal, signals ...unix.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// forwardedSignals delivers what a terminal or a supervisor sends to den in the
// program's place. The program leads a session of its own, so that nothing
// reaches it twice.
func forwardedSignals() (<-chan unix.Signal, func()) {
	in := make(chan os.Signal, 16)
	out := make(chan unix.Signal, 16)
	notify(in, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	// A reader of den's output that goes away must not take den from its
	// container. The program gets its own SIGPIPE.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGPIPE)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case s := <-in:
				sig, ok := s.(unix.Signal)
				if !ok {
					continue
				}
				select {
				case out <- sig:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return out, func() {
		signal.Stop(in)
		signal.Stop(broken)
		close(done)
		<-ended
	}
}
