package sentry

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/vfs"

	"den/internal/sandbox"
)

// What a sentry answers on a connection of its own while the payload runs: one call each.

// errEnded is why nothing more is done in a sandbox.
var errEnded = &remoteError{"the sandbox has ended", unix.ESRCH}

// answer serves one call.
func (b *box) answer(c *control) {
	cmd, files, err := c.next()
	if err == nil && cmd.Start != nil {
		b.admit(c, cmd.Start, files)
		return
	}
	defer c.close()
	if err != nil {
		return // den does not want it any more
	}
	defer files.close()
	e := &event{Done: true}
	switch {
	case cmd.Exec != nil:
		e, err = b.exec(c, cmd.Exec, files)
	case cmd.Plug != nil:
		err = b.plug(cmd.Plug, files)
	case cmd.Unplug != "":
		err = b.unplug(cmd.Unplug)
	case cmd.Pause:
		b.hold(holdPause)
	case cmd.Resume:
		b.letGo(holdPause)
	case cmd.Limits != nil:
		err = b.setLimits(*cmd.Limits)
	case cmd.Stats:
		e.Stats = b.stats()
	case cmd.Processes:
		e.Processes = b.processes()
	default:
		err = b.fileCall(cmd, files, e)
	}
	if err != nil {
		e = &event{Failed: describe(err)}
	}
	_ = c.tell(e) // nobody may be there any more
	if cmd.Exec != nil && err == nil {
		b.execs.Done()
	}
}

// fileCall serves a call that is about files.
func (b *box) fileCall(cmd *command, d descriptors, e *event) (err error) {
	f := b.openFiles()
	defer f.done()
	if cmd.Stat != "" {
		e.Stat, err = f.describe(cmd.Stat)
		return err
	}
	n, err := d.take(0)
	if err != nil {
		return err
	}
	pipe := os.NewFile(uintptr(n), "pipe")
	defer pipe.Close()
	switch {
	case cmd.ReadTar != nil:
		return f.archive(cmd.ReadTar.Name, cmd.ReadTar.As, pipe)
	case cmd.WriteTar != nil:
		return f.unpack(cmd.WriteTar.Name, pipe, cmd.WriteTar.Options)
	case cmd.ExportTo:
		return b.exportSoFar(pipe)
	}
	return errors.New("the sentry does not know the call")
}

// exec runs one more program to its end, and counts it among those that have not told of it.
func (b *box) exec(c *control, x *execution, files descriptors) (*event, error) {
	tg, term, err := b.add(x, files)
	if err != nil {
		return nil, err
	}
	files.close() // what the program has is its own
	if err := c.tell(&event{Started: true}); err != nil {
		b.kill(tg)
	}
	go b.obey(c, tg, term)
	tg.WaitExited()
	if term != nil {
		term.finish()
	}
	return &event{Exit: &exit{Status: uint32(tg.ExitStatus())}}, nil
}

// add starts a program in a sandbox that has not ended.
func (b *box) add(x *execution, files descriptors) (*kernel.ThreadGroup, *terminal, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	if b.ended {
		return nil, nil, errEnded
	}
	if err := b.enterable(&x.program); err != nil {
		return nil, nil, err
	}
	filter := b.r.Filter
	if x.Unfiltered {
		filter = nil
	}
	tg, term, err := b.launch(&x.program, files, filter)
	if err != nil {
		return nil, nil, err
	}
	b.execs.Add(1)
	b.k.StartProcess(tg)
	return tg, term, nil
}

// enterable says why a program cannot begin in its working directory. Only that of the payload is made.
func (b *box) enterable(p *program) error {
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	ctx := b.ctx
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	st, err := b.k.VFS().StatAt(ctx, credentials(p, b.userns), follow(root, p.Cwd), &vfs.StatOptions{Mask: linux.STATX_TYPE})
	if err == nil && st.Mode&linux.S_IFMT != linux.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return &sandbox.ExecError{Program: p.Args[0], Code: 126, Err: &os.PathError{Op: opChdir, Path: p.Cwd, Err: errnoOf(err)}}
	}
	return nil
}

// obey does what den says to a program until den, or the program, is gone.
func (b *box) obey(c *control, tg *kernel.ThreadGroup, term *terminal) {
	for {
		cmd, files, err := c.next()
		files.close()
		switch {
		case err != nil:
			b.kill(tg)
			return
		case cmd.Signal != 0:
			_ = b.k.SendExternalSignalThreadGroup(tg, &linux.SignalInfo{Signo: cmd.Signal})
		case cmd.Resize != nil && term != nil:
			term.resize(b, *cmd.Resize)
		}
	}
}

func (b *box) kill(tg *kernel.ThreadGroup) {
	_ = b.k.SendExternalSignalThreadGroup(tg, &linux.SignalInfo{Signo: int32(linux.SIGKILL)})
}

// execsLimit is how long a sandbox that has ended waits for den to take what the programs in it said last.
const execsLimit = 5 * time.Second

// awaitExecs returns when all programs that were added have told how they ended.
func (b *box) awaitExecs() {
	told := make(chan struct{})
	go func() {
		b.execs.Wait()
		close(told)
	}()
	timer := time.NewTimer(execsLimit)
	defer timer.Stop()
	select {
	case <-told:
	case <-timer.C:
	}
}
