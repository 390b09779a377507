package engine

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"
)

// Docker's defaults of health checks, and what it keeps of them.
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
	keptResults          = 5
	keptOutput           = 4096
)

// The states of a health check.
const (
	healthStarting  = "starting"
	healthHealthy   = "healthy"
	healthUnhealthy = "unhealthy"
)

// wantedHealth is the check that the image and the request ask for.
func (c *container) wantedHealth() (h HealthCheck) {
	if i := c.config.Config.Healthcheck; i != nil {
		h = HealthCheck{i.Test, i.Interval, i.Timeout, i.StartPeriod, i.StartInterval, i.Retries}
	}
	if r := c.more.Health; r != nil {
		if len(r.Test) > 0 {
			h.Test = r.Test
		}
		h.Interval, h.Timeout = firstTime(r.Interval, h.Interval), firstTime(r.Timeout, h.Timeout)
		h.StartPeriod, h.StartInterval = firstTime(r.StartPeriod, h.StartPeriod), firstTime(r.StartInterval, h.StartInterval)
		if r.Retries > 0 {
			h.Retries = r.Retries
		}
	}
	return h
}

// healthCheck is the container's check with all its defaults; nil if it has none.
func (c *container) healthCheck() *HealthCheck {
	h := c.wantedHealth()
	if len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" {
		return nil
	}
	h.Interval, h.Timeout = firstTime(h.Interval, defaultInterval), firstTime(h.Timeout, defaultTimeout)
	h.StartInterval = firstTime(h.StartInterval, defaultStartInterval)
	if h.Retries == 0 {
		h.Retries = defaultRetries
	}
	return &h
}

func firstTime(values ...time.Duration) time.Duration {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

// A monitor checks the health of a run until it is stopped.
type monitor struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// stop ends the monitor and waits for it. A nil one is none.
func (m *monitor) stop() {
	if m != nil {
		m.cancel()
		<-m.done
	}
}

// watchHealth begins to check the container; nil without a check. The caller holds mu.
func (r *run) watchHealth() *monitor {
	h := r.c.healthCheck()
	if h == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &monitor{cancel, make(chan struct{})}
	go func() {
		defer close(m.done)
		r.check(ctx, h)
	}()
	return m
}

// ended is the health of a container that does not run: docker keeps its last results.
func ended(h *Health) *Health {
	if h == nil {
		return nil
	}
	next := *h
	next.Status = healthUnhealthy
	return &next
}

// check runs probes until ctx ends.
func (r *run) check(ctx context.Context, h *HealthCheck) {
	began := r.life.snapshot().Started
	timer := time.NewTimer(r.untilProbe(h, began))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if r.life.snapshot().State != statePaused {
			result := r.probe(ctx, h)
			if ctx.Err() != nil {
				return
			}
			r.judge(h, began, result)
		}
		timer.Reset(r.untilProbe(h, began))
	}
}

// untilProbe is the time to the next probe: shorter while the container starts.
func (r *run) untilProbe(h *HealthCheck, began time.Time) time.Duration {
	if status := r.life.snapshot().Health; status != nil && status.Status == healthStarting && time.Since(began) < h.StartPeriod {
		return h.StartInterval
	}
	return h.Interval
}

// probe runs the check once.
func (r *run) probe(ctx context.Context, h *HealthCheck) HealthResult {
	e := r.life.engine
	result := HealthResult{Start: time.Now().UTC(), ExitCode: -1}
	out := &bounded{limit: keptOutput}
	id, err := e.CreateExec(ctx, r.life.id, ExecConfig{Args: r.c.probeArgs(h.Test), AttachStdout: true, AttachStderr: true})
	if err == nil {
		limit, cancel := context.WithTimeout(ctx, h.Timeout)
		err = e.StartExec(limit, id, ExecStreams{Stdout: out, Stderr: out})
		if limit.Err() != nil {
			e.killExec(id)
		}
		cancel()
	}
	result.End = time.Now().UTC()
	result.Output = out.String()
	x, xerr := e.InspectExec(ctx, id)
	switch {
	case err != nil && context.Cause(ctx) == nil && err == context.DeadlineExceeded:
		result.Output = "Health check exceeded timeout (" + h.Timeout.String() + ")"
		if s := out.String(); s != "" {
			result.Output += ": " + s
		}
	case err != nil && (xerr != nil || x.ExitCode == nil):
		result.Output = err.Error()
	case xerr == nil && x.ExitCode != nil:
		result.ExitCode = *x.ExitCode
		if err != nil {
			result.Output = err.Error()
		}
	}
	return result
}

// probeArgs are the arguments of a check.
func (c *container) probeArgs(test []string) []string {
	if test[0] == "CMD" {
		return test[1:]
	}
	shell := c.config.Config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), test[1:]...)
}

// judge keeps a result, and says so if the state changes.
func (r *run) judge(h *HealthCheck, began time.Time, result HealthResult) {
	l := r.life
	l.mu.Lock()
	if l.run != r {
		l.mu.Unlock()
		return
	}
	next := Health{Status: healthStarting}
	if l.record.Health != nil {
		next = *l.record.Health
	}
	old := next.Status
	next.Log = append(append([]HealthResult(nil), next.Log...), result)
	next.Log = next.Log[max(0, len(next.Log)-keptResults):]
	if result.ExitCode == 0 {
		next.FailingStreak, next.Status = 0, healthHealthy
	} else if old != healthStarting || result.Start.Sub(began) >= h.StartPeriod {
		// A failure while the container starts does not count.
		next.FailingStreak++
		if next.FailingStreak >= h.Retries {
			next.Status = healthUnhealthy
		}
	}
	err := l.updateLocked(func(rec *record) { rec.Health = &next })
	rec := l.record
	l.mu.Unlock()
	l.complain(err)
	if next.Status != old {
		l.engine.containerEvent(&rec, "health_status: "+next.Status, nil)
	}
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	mu    sync.Mutex
	b     bytes.Buffer
	limit int
}

// Write never fails.
func (w *bounded) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p[:min(len(p), max(0, w.limit-w.b.Len()))])
	return len(p), nil
}

func (w *bounded) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}
