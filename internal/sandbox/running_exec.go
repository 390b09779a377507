package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// execs are the programs that Exec has started in a sandbox and that live.
type execs struct {
	mu    sync.Mutex
	ended bool
	live  map[*running]bool
	wg    sync.WaitGroup
}

// add reports false if the sandbox has ended.
func (e *execs) add(s *running) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return false
	}
	if e.live == nil {
		e.live = map[*running]bool{}
	}
	e.live[s] = true
	e.wg.Add(1)
	return true
}

func (e *execs) remove(s *running) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live[s] {
		delete(e.live, s)
		e.wg.Done()
	}
}

// end refuses more and waits until the processes of all are gone; their output may
// still be on its way.
func (e *execs) end() {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.wg.Wait()
}

// started notes the holder, for who asks for holders meanwhile.
func (s *running) started(holder int) {
	if s.parent != nil {
		s.parent.execs.mu.Lock()
		defer s.parent.execs.mu.Unlock()
	}
	s.holder = holder
}

// holders are the parents of the sandbox's processes: its own holder and those of Exec.
func (s *running) holders() []int {
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	pids := []int{s.holder}
	for e := range s.execs.live {
		if e.holder != 0 {
			pids = append(pids, e.holder)
		}
	}
	return pids
}

// Exec starts one more program in the sandbox. It takes part in all namespaces,
// has the sandbox's cgroup and root, and rights of its own. When it ends, what it has
// started stays as long as the sandbox where that has a pid namespace, and ends with it where not.
func (s *running) Exec(ctx context.Context, r *ExecRequest) (Sandbox, error) {
	if s.parent != nil {
		return s.parent.Exec(ctx, r)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.Process == nil {
		return nil, fmt.Errorf("sandbox %s: no process", r.ID)
	}
	target, namespaces, err := s.target()
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: start %s in it: %w", s.id, r.ID, err)
	}
	defer target.Close()
	req := &Request{
		ID: r.ID, Spec: &specs.Spec{Process: r.Process, Linux: &specs.Linux{}}, Root: oci.Mount{Source: s.stubs.root.Source},
		Hold: []*os.File{target}, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Network: NetworkHost,
	}
	if s.seccomp != nil && !r.Privileged && s.n.canFilter(r.Process) {
		req.Spec.Linux.Seccomp = s.seccomp
	}
	e := &running{id: r.ID, n: s.n, stubs: &stubs{}, parent: s, join: &joining{namespaces: namespaces}, filter: s.filter}
	e.enter = s.cgroup.Load().joining()
	if !s.execs.add(e) {
		return nil, fmt.Errorf("sandbox %s: start %s in it: %w", s.id, r.ID, os.ErrProcessDone)
	}
	started, err := s.n.launch(ctx, req, e)
	if err != nil {
		s.execs.remove(e)
		return nil, err
	}
	return started, nil
}

// target is a pidfd of the sandbox's first process, and which of its namespaces den is not in.
func (s *running) target() (_ *os.File, namespaces int, err error) {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// The id is the payload's as long as the holder, whose child it is, has not waited for it.
	if parent(s.pid) != s.holder {
		return nil, 0, os.ErrProcessDone
	}
	if !s.n.chroot {
		if namespaces, err = differentNamespaces(s.pid); err != nil {
			return nil, 0, err
		}
	}
	if unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		return nil, 0, os.ErrProcessDone
	}
	return f, namespaces, nil
}

// differentNamespaces are those of pid that this process does not share.
func differentNamespaces(pid int) (flags int, err error) {
	for name, flag := range map[string]int{
		"mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "uts": unix.CLONE_NEWUTS,
		"ipc": unix.CLONE_NEWIPC, "cgroup": unix.CLONE_NEWCGROUP,
	} {
		own, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			continue // not of this kernel
		}
		other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
			return 0, os.ErrProcessDone
		case errors.Is(err, os.ErrPermission):
			return 0, fmt.Errorf("its namespaces: %w: that needs CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)", err)
		case err != nil:
			return 0, err
		}
		if own != other {
			flags |= flag
		}
	}
	return flags, nil
}
