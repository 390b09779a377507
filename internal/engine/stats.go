package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"den/internal/sandbox"
)

// Stats are a container's, and what they are to be compared with.
type Stats struct {
	sandbox.Stats
	// SystemCPU is the CPU time of the whole machine, CPUs their number.
	SystemCPU time.Duration
	CPUs      int
}

// Top lists a running container's processes.
func (e *Engine) Top(ctx context.Context, nameOrID string) ([]sandbox.Process, error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	r, err := l.running()
	if err != nil {
		return nil, err
	}
	i, ok := r.sb.(sandbox.Inspector)
	if !ok {
		return nil, unsupported("top %s: on this rung den does not see the processes of a container", nameOrID)
	}
	list, err := i.Processes(ctx)
	if err != nil {
		return nil, err
	}
	l.tell("top", nil)
	return list, nil
}

// Stats is what a container uses now; zero for one that does not run.
func (e *Engine) Stats(ctx context.Context, nameOrID string) (Stats, error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return Stats{}, err
	}
	r, err := l.running()
	if err != nil {
		return Stats{}, nil //nolint:nilerr // that it does not run is no failure
	}
	s := Stats{CPUs: runtime.NumCPU()}
	s.Read = time.Now()
	i, ok := r.sb.(sandbox.Inspector)
	if !ok {
		return s, unsupported("stats %s: on this rung den does not see what a container uses", nameOrID)
	}
	used, err := i.Stats(ctx)
	if err != nil {
		return s, err
	}
	s.Stats = used
	s.SystemCPU, err = systemCPU()
	return s, err
}

// userHZ is how many ticks of /proc/stat are a second; the kernel fixes it.
const userHZ = 100

// systemCPU is the sum of what all CPUs did, idling included, as docker counts it.
func systemCPU() (time.Duration, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("system cpu time: %w", err)
	}
	defer f.Close()
	return parseSystemCPU(f)
}

// parseSystemCPU reads /proc/stat (proc_stat(5)).
func parseSystemCPU(r io.Reader) (time.Duration, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[0] != "cpu" {
			continue
		}
		var ticks uint64
		for _, field := range fields[1:8] {
			n, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("system cpu time: %w", err)
			}
			ticks += n
		}
		// In this order: days of a hundred processors in nanoseconds, times 100, are too many for 63 bits.
		return time.Duration(ticks) * (time.Second / userHZ), nil
	}
	return 0, errors.Join(errors.New("system cpu time: /proc/stat does not say"), lines.Err())
}
