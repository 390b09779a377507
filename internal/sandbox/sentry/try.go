package sentry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Platforms, in the order in which they are tried. KVM is none of them: it was
// seen to hang for minutes.
const (
	platformSystrap = "systrap"
	platformPtrace  = "ptrace"
)

// trialLimit ends a trial that hangs. One takes some milliseconds, and was seen to take more than ten seconds on a
// machine whose processors others kept busy.
const trialLimit = time.Minute

// Try says which platform of the sentry works here, found out by a process
// that uses it. err says why each does not.
func Try(ctx context.Context) (platform string, err error) {
	if err := checkBuild(); err != nil {
		return "", err
	}
	var errs []error
	for _, p := range []string{platformSystrap, platformPtrace} {
		err := try(ctx, p)
		if err == nil {
			return p, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		errs = append(errs, fmt.Errorf("platform %s: %w", p, err))
	}
	return "", errors.Join(errs...)
}

func try(ctx context.Context, platform string) error {
	c, err := spawn(trialName, platform)
	if err != nil {
		return err
	}
	defer c.end()
	var hung atomic.Bool
	timer := time.AfterFunc(trialLimit, func() {
		hung.Store(true)
		c.kill()
	})
	defer timer.Stop()
	defer context.AfterFunc(ctx, c.kill)()
	ws, err := c.wait()
	switch {
	case err != nil:
		return err
	case hung.Load():
		return fmt.Errorf("no answer within %s", trialLimit)
	case !ws.Exited() || ws.ExitStatus() != exitWorks:
		return c.died(ws)
	}
	return nil
}

// checkBuild refuses a den that was linked with the C library: the sentry
// copies code of its own binary into the processes it traces, where code
// that expects a C library's thread does not run.
func checkBuild() error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value == "1" {
			return ErrCgo
		}
	}
	return nil
}

// ErrCgo is why a den that was built with cgo has no sentry.
var ErrCgo = errors.New("this den was built with cgo, and its sentry cannot run: build it with CGO_ENABLED=0")

// trialMain makes a platform and an address space, in which nothing runs: what
// outer containers refuse is refused by then.
func trialMain(name string) error {
	quiet()
	p, err := newPlatform(name)
	if err != nil {
		return err
	}
	as, err := p.NewAddressSpace()
	if err != nil {
		return fmt.Errorf("platform %s: address space: %w", name, err)
	}
	as.Release()
	os.Exit(exitWorks) // the rest of the address space is not worth the time
	return nil
}
