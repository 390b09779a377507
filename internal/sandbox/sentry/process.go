package sentry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fd"
	"gvisor.dev/gvisor/pkg/sentry/fdimport"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/limits"
	"gvisor.dev/gvisor/pkg/sentry/loader"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/usermem"

	"den/internal/sandbox"
)

// process makes the payload's first process, and process 1 if that is another.
func (b *box) process() error {
	if err := b.limitPids(); err != nil {
		return fmt.Errorf("pids limit: %w", err)
	}
	if err := b.workingDirectory(); err != nil {
		return fmt.Errorf("working directory %s: %w", b.r.Cwd, err)
	}
	if b.r.Init {
		if err := b.startInit(); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	var err error
	if b.payload, b.term, err = b.launch(&b.r.program, b.files, b.r.Filter); err != nil {
		return err
	}
	if b.term != nil {
		return b.console(b.term)
	}
	return nil
}

// launch makes a process, and its terminal if it has one. It does not run yet. filter is the request's, or nil for none.
func (b *box) launch(p *program, files descriptors, filter *payloadFilter) (_ *kernel.ThreadGroup, _ *terminal, err error) {
	creds := credentials(p, b.userns)
	args, err := b.processArgs(p, b.environment(p), creds)
	if err != nil {
		return nil, nil, err
	}
	if !b.inTable(filter) {
		args.ContainerID = b.unfilteredID()
	}
	ctx := args.NewContext(b.k)
	defer args.FDTable.DecRef(ctx)
	taken := false
	defer func() {
		if !taken { // else CreateProcess did it
			b.mounts.DecRef(ctx)
		}
	}()
	if p.Terminal == nil {
		if err := b.stdio(ctx, args.FDTable, p, files); err != nil {
			return nil, nil, err
		}
	}
	if args.Filename, err = b.find(ctx, p, creds); err != nil {
		return nil, nil, err
	}
	taken = true
	tg, err := b.createProcess(args)
	if err != nil {
		return nil, nil, err
	}
	var t *terminal
	if p.Terminal != nil {
		if t, err = b.newTerminal(tg.Leader(), args.FDTable, p, files); err != nil {
			b.discard(tg)
			return nil, nil, fmt.Errorf("terminal: %w", err)
		}
	}
	if !b.inTable(filter) {
		if err := filter.add(tg.Leader()); err != nil {
			b.discard(tg)
			return nil, nil, err
		}
	}
	return tg, t, nil
}

// discard ends a process that has not run an instruction: it starts with a SIGKILL pending.
func (b *box) discard(tg *kernel.ThreadGroup) {
	_ = b.k.SendExternalSignalThreadGroup(tg, &linux.SignalInfo{Signo: int32(linux.SIGKILL)})
	b.k.StartProcess(tg)
}

// credentials are the payload's. Capabilities are virtual: the sentry has them all, whoever
// den is. What a program that is not root's keeps over exec is settled here, since
// nothing else executes the first one.
func credentials(r *program, ns *auth.UserNamespace) *auth.Credentials {
	caps := &auth.TaskCapabilities{
		BoundingCaps: auth.CapabilitySet(r.Bounding), PermittedCaps: auth.CapabilitySet(r.Permitted & r.Bounding),
		EffectiveCaps: auth.CapabilitySet(r.Effective & r.Permitted & r.Bounding), InheritableCaps: auth.CapabilitySet(r.Inheritable & r.Bounding),
		AmbientCaps: auth.CapabilitySet(r.Ambient & r.Permitted & r.Inheritable & r.Bounding),
	}
	if r.UID != 0 {
		caps.PermittedCaps, caps.EffectiveCaps = caps.AmbientCaps, caps.AmbientCaps
	}
	groups := make([]auth.KGID, len(r.Groups))
	for i, g := range r.Groups {
		groups[i] = auth.KGID(g)
	}
	slices.Sort(groups) // as Linux keeps them
	return auth.NewUserCredentials(auth.KUID(r.UID), auth.KGID(r.GID), groups, caps, ns)
}

// workingDirectory makes it if it is missing; it stays.
func (b *box) workingDirectory() error {
	ctx := b.ctx
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	if b.r.Cwd == "" {
		b.r.Cwd = "/"
	}
	l, err := b.locate(ctx, root, b.r.Cwd)
	if err != nil {
		return err
	}
	if len(l.missing) == 0 && l.mode != linux.S_IFDIR {
		return unix.ENOTDIR
	}
	_, err = b.create(ctx, root, l, true)
	return err
}

// maxPasswdBytes bounds what is read of a sandbox's /etc/passwd.
const maxPasswdBytes = 4 << 20

// environment is the program's, with HOME from the sandbox's own /etc/passwd where it has none.
func (b *box) environment(p *program) []string {
	if slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") && e != "HOME=" }) {
		return p.Env
	}
	env := slices.DeleteFunc(slices.Clone(p.Env), func(e string) bool { return e == "HOME=" })
	home := "/"
	b.readPasswd(func(r io.Reader) { home = sandbox.HomeOf(r, p.UID) })
	return append(env, "HOME="+home)
}

// file reads and writes a file of the sentry.
type file struct {
	ctx context.Context
	fd  *vfs.FileDescription
}

// Read implements io.Reader.
func (f file) Read(p []byte) (int, error) {
	n, err := f.fd.Read(f.ctx, usermem.BytesIOSequence(p), vfs.ReadOptions{})
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return int(n), asNil(err)
}

// Write implements io.Writer.
func (f file) Write(p []byte) (int, error) {
	n, err := f.fd.Write(f.ctx, usermem.BytesIOSequence(p), vfs.WriteOptions{})
	return int(n), asNil(err)
}

// processArgs are what all processes that den makes inside have in common.
func (b *box) processArgs(p *program, env []string, creds *auth.Credentials) (*kernel.CreateProcessArgs, error) {
	ls, err := limitSet(p.Rlimits)
	if err != nil {
		return nil, err
	}
	b.mounts.IncRef() // CreateProcess takes it
	return &kernel.CreateProcessArgs{
		Argv: p.Args, Envv: env, WorkingDirectory: p.Cwd, Credentials: creds, NoNewPrivs: p.NoNewPrivs,
		FDTable: b.k.NewFDTable(), Umask: uint(p.Umask), Limits: ls, MaxSymlinkTraversals: linux.MaxSymlinkTraversals,
		UTSNamespace: b.uts, IPCNamespace: b.ipc, PIDNamespace: b.pids,
		ContainerID: b.id, MountNamespace: b.mounts, InitialCgroupV2: b.cgroup,
	}, nil
}

// limitSet is Docker's, with what the request wants.
func limitSet(want []rlimit) (*limits.LimitSet, error) {
	ls, err := limits.NewLinuxLimitSet()
	if err != nil {
		return nil, err
	}
	for _, l := range []limits.LimitType{
		limits.AS, limits.Core, limits.CPU, limits.Data, limits.FileSize, limits.Locks, limits.ProcessCount, limits.Rss,
	} {
		ls.SetUnchecked(l, limits.Limit{Cur: limits.Infinity, Max: limits.Infinity})
	}
	ls.SetUnchecked(limits.NumberOfFiles, limits.Limit{Cur: 1 << 20, Max: 1 << 20})
	ls.SetUnchecked(limits.Stack, limits.Limit{Cur: 8 << 20, Max: limits.Infinity})
	for _, l := range want {
		kind, ok := limits.FromLinuxResource[l.Resource]
		if !ok {
			return nil, fmt.Errorf("rlimit %d: unknown", l.Resource)
		}
		ls.SetUnchecked(kind, limits.Limit{Cur: limits.FromLinux(l.Soft), Max: limits.FromLinux(l.Hard)})
	}
	return ls, nil
}

// stdio gives a process its streams. They appear to be the user's own, so that
// /dev/stdout can be opened.
func (b *box) stdio(ctx context.Context, table *kernel.FDTable, p *program, files descriptors) error {
	fds := map[int]*fd.FD{}
	for i, index := range p.StdioFD {
		n, err := files.take(index)
		if err != nil {
			return err
		}
		fds[i] = fd.New(n)
	}
	_, err := fdimport.Import(ctx, table, fds, fdimport.ImportOptions{
		UID: auth.KUID(p.UID), GID: auth.KGID(p.GID), ContainerName: b.id, SupportTTYs: true,
	})
	if err != nil {
		return fmt.Errorf("standard streams: %w", err)
	}
	return nil
}

// createProcess makes a process and says what is wrong with its program.
func (b *box) createProcess(args *kernel.CreateProcessArgs) (*kernel.ThreadGroup, error) {
	tg, _, err := b.k.CreateProcess(*args)
	if err == nil {
		return tg, b.tellProcessors(tg)
	}
	// Its error is only text: what can be wrong is asked for again.
	ctx := args.NewContext(b.k)
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	links := uint(linux.MaxSymlinkTraversals)
	_, _, _, serr := b.k.LoadTaskImage(ctx, loader.LoadArgs{
		Root: root, WorkingDir: root, RemainingTraversals: &links, ResolveFinal: true, Filename: args.Filename,
		Argv: args.Argv, Envv: args.Envv, Features: b.k.FeatureSet(), NoNewPrivs: args.NoNewPrivs, AllowSUID: true,
	})
	if serr == nil {
		return nil, err
	}
	no := errnoOf(serr.ToError())
	e := &sandbox.ExecError{Program: args.Argv[0], Code: 126, Err: &os.PathError{Op: "exec", Path: args.Filename, Err: no}}
	if no == unix.ENOENT { // its interpreter is missing
		e.Code = 127
	}
	return nil, e
}

// find is the path of the program: the first in PATH that is a file and
// executable. A name with a slash is taken as it is.
func (b *box) find(ctx context.Context, prog *program, creds *auth.Credentials) (string, error) {
	name := prog.Args[0]
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	if !strings.Contains(name, "/") {
		for _, dir := range sandbox.SearchPath(prog.Env) {
			p := path.Join(dir, name)
			if err := b.executable(ctx, root, p, creds); err == nil {
				return p, nil
			}
		}
		return "", &sandbox.ExecError{Program: name, Code: 127, Err: sandbox.ErrNotInPath}
	}
	full := name
	if !path.IsAbs(name) {
		full = path.Join(prog.Cwd, name)
	}
	err := b.executable(ctx, root, full, creds)
	if err == nil {
		return full, nil
	}
	e := &sandbox.ExecError{Program: name, Code: 126, Err: err}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EISDIR) {
		e.Code, e.Err = 127, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return "", e
}

// executable says why a user cannot execute p.
func (b *box) executable(ctx context.Context, root vfs.VirtualDentry, p string, creds *auth.Credentials) error {
	v := b.k.VFS()
	st, err := v.StatAt(ctx, creds, follow(root, p), &vfs.StatOptions{Mask: linux.STATX_TYPE})
	switch {
	case err != nil:
		return asErrno(err)
	case st.Mode&linux.S_IFMT == linux.S_IFDIR:
		return unix.EISDIR
	}
	f, err := v.OpenAt(ctx, creds, follow(root, p), &vfs.OpenOptions{Flags: linux.O_RDONLY, FileExec: true})
	if err != nil {
		// A program may be executable and not readable.
		if err := v.AccessAt(ctx, creds, vfs.MayExec, follow(root, p)); err != nil {
			return asErrno(err)
		}
		return nil
	}
	f.DecRef(ctx)
	return nil
}
