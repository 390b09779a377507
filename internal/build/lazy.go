package build

import (
	"context"
	"sync"

	"den/internal/sandbox"
	"den/internal/snapshot"
)

// A Runner is what RUN needs.
type Runner struct {
	Driver snapshot.Driver
	Exec   sandbox.Executor
}

// lazyRunner finds out how steps can be run when the first one is: a build of
// which everything is cached does not pay for the probe, and succeeds where
// nothing could run.
type lazyRunner struct {
	choose func(context.Context) (*Runner, error)

	mu     sync.Mutex
	runner *Runner
}

func (l *lazyRunner) get(ctx context.Context) (*Runner, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.runner != nil {
		return l.runner, nil
	}
	r, err := l.choose(ctx)
	if err == nil {
		l.runner = r
	}
	return r, err
}

type lazyDriver struct{ *lazyRunner }

func (lazyDriver) Name() string { return "lazy" }

func (l lazyDriver) Prepare(ctx context.Context, stack []snapshot.Tree, d snapshot.Draft) (*snapshot.Active, error) {
	r, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return r.Driver.Prepare(ctx, stack, d)
}

func (l lazyDriver) View(ctx context.Context, stack []snapshot.Tree) (*snapshot.Active, error) {
	r, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return r.Driver.View(ctx, stack)
}

func (l lazyDriver) Changes(ctx context.Context, a *snapshot.Active) error {
	r, err := l.get(ctx)
	if err != nil {
		return err
	}
	return r.Driver.Changes(ctx, a)
}

type lazyExecutor struct{ *lazyRunner }

func (lazyExecutor) Name() string { return "lazy" }

func (l lazyExecutor) Start(ctx context.Context, req *sandbox.Request) (sandbox.Sandbox, error) {
	r, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return r.Exec.Start(ctx, req)
}

// Expect implements sandbox.Expecter. Why nothing can run Start will say.
func (l lazyExecutor) Expect(ctx context.Context, network string) {
	if r, err := l.get(ctx); err == nil {
		if e, ok := r.Exec.(sandbox.Expecter); ok {
			e.Expect(ctx, network)
		}
	}
}
