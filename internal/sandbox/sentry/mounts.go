package sentry

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/dev"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/devpts"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/gofer"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/mqfs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/proc"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/sys"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/tmpfs"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// fileSystem makes the root file system and all mounts in it, in their order: a
// path is resolved when it is mounted on, inside the root, so that a hostile image
// cannot lead a mount elsewhere.
func (b *box) fileSystem() error {
	v := b.k.VFS()
	tree, err := b.rootTree()
	if err != nil {
		return fmt.Errorf("mount /: %w", err)
	}
	if b.r.Root.BindFD < 0 {
		b.keepCommon(tree)
	}
	// The root of a namespace cannot be mounted over as den wants it, so that below
	// the visible root lies an empty one.
	b.mounts, err = v.NewMountNamespace(b.ctx, b.root, "rootfs", tmpfs.Name, &vfs.MountOptions{ReadOnly: true, Locked: true}, b.k)
	if err != nil {
		return fmt.Errorf("mount namespace: %w", asErrno(err))
	}
	ctx := b.ctx
	below := b.mounts.Root(ctx)
	err = v.ConnectMountAt(ctx, b.root, tree.Mount(), at(below, "/"))
	below.DecRef(ctx)
	if err != nil {
		return fmt.Errorf("mount /: %w", asErrno(err))
	}
	root := b.mounts.Root(ctx)
	defer root.DecRef(ctx)
	ctx = vfs.WithRoot(ctx, root)
	for i := range b.r.Mounts {
		if err := b.mount(ctx, root, &b.r.Mounts[i]); err != nil {
			return fmt.Errorf("mount %s: %w", b.r.Mounts[i].Target, err)
		}
	}
	if err := b.protect(ctx, root); err != nil {
		return err
	}
	if b.r.Root.ReadOnly {
		if err := v.SetMountReadOnly(tree.Mount(), true); err != nil {
			return fmt.Errorf("make the root read-only: %w", asErrno(err))
		}
	}
	return nil
}

// mount makes one mount and attaches it.
func (b *box) mount(ctx context.Context, root vfs.VirtualDentry, m *mount) error {
	v := b.k.VFS()
	tree, err := b.source(m)
	if err != nil {
		return err
	}
	l, err := b.locate(ctx, root, m.Target)
	if err != nil {
		return err
	}
	st, err := v.StatAt(ctx, b.root, at(tree, ""), &vfs.StatOptions{Mask: linux.STATX_TYPE})
	if err != nil {
		return asErrno(err)
	}
	dir := st.Mode&linux.S_IFMT == linux.S_IFDIR
	made, err := b.create(ctx, root, l, dir)
	if b.r.Root.BindFD >= 0 {
		b.made = append(b.made, made...)
	}
	if err != nil {
		return err
	}
	if len(l.missing) == 0 && dir != (l.mode == linux.S_IFDIR) {
		return fmt.Errorf("the target: %w", unix.ENOTDIR)
	}
	if err := v.ConnectMountAt(ctx, b.root, tree.Mount(), at(root, l.full())); err != nil {
		return asErrno(err)
	}
	if m.Type == "tmpfs" && m.Target == "/dev" {
		return b.devices(ctx, root)
	}
	if m.ReadOnly {
		if err := v.SetMountReadOnly(tree.Mount(), true); err != nil {
			return fmt.Errorf("make it read-only: %w", asErrno(err))
		}
	}
	return nil
}

// source makes what a mount shows.
func (b *box) source(m *mount) (vfs.VirtualDentry, error) {
	o := &vfs.MountOptions{Flags: vfs.MountFlags{NoExec: m.NoExec, NoDev: m.NoDev, NoSUID: m.NoSUID}}
	switch m.Type {
	case "bind":
		if m.Content != nil {
			return b.show(m.Content, o)
		}
		fd, err := b.fd(m.FD)
		if err != nil {
			return vfs.VirtualDentry{}, err
		}
		g := goferOptions(fd, false)
		g.Flags = o.Flags
		return b.disconnected(gofer.Name, g)
	case "overlay":
		return b.subtree(m, o)
	case "proc":
		o.GetFilesystemOptions.InternalData = &proc.InternalData{}
		return b.disconnected(proc.Name, o)
	case "sysfs":
		o.GetFilesystemOptions.InternalData = &sys.InternalData{}
		return b.disconnected(sys.Name, o)
	case "devpts":
		// mode and gid are the terminals' for Linux and the directory's for the sentry.
		o.GetFilesystemOptions.Data = knownOptions(m.Options, "newinstance", "ptmxmode")
		tree, err := b.disconnected(devpts.Name, o)
		if err == nil && m.Target == "/dev/pts" {
			tree.IncRef()
			b.pts = tree
		}
		return tree, err
	case "mqueue":
		return b.disconnected(mqfs.Name, o)
	case "tmpfs":
		o.GetFilesystemOptions.Data = knownOptions(m.Options, "mode", "size", "uid", "gid")
		if m.Target == "/dev" {
			return b.disconnected(dev.Name, o)
		}
		return b.disconnected(tmpfs.Name, o)
	}
	return vfs.VirtualDentry{}, fmt.Errorf("type %.40q: %w", m.Type, unix.ENODEV)
}

// subtree shows a path inside an overlay of its own.
func (b *box) subtree(m *mount, o *vfs.MountOptions) (vfs.VirtualDentry, error) {
	v := b.k.VFS()
	lowers, err := b.lowerTrees(m.Lower)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	for len(lowers) < 2 { // an overlay merges at least two
		empty, err := b.memory(tmpfs.FilesystemOpts{})
		if err != nil {
			return vfs.VirtualDentry{}, err
		}
		lowers = append(lowers, empty)
	}
	var upper vfs.VirtualDentry
	if !m.ReadOnly {
		if upper, err = b.memory(tmpfs.FilesystemOpts{}); err != nil {
			return vfs.VirtualDentry{}, err
		}
		if err := b.copyAttributes(lowers[0], upper, "/"); err != nil {
			return vfs.VirtualDentry{}, err
		}
	}
	tree, err := b.overlay(upper, lowers, m.ReadOnly)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	source := strings.TrimLeft(m.Source, "/")
	if source == "" || source == "." {
		return tree, nil
	}
	sub, err := v.GetDentryAt(b.ctx, b.root, follow(tree, source), &vfs.GetDentryOptions{})
	if err != nil {
		return vfs.VirtualDentry{}, fmt.Errorf("%s: %w", m.Source, asErrno(err))
	}
	defer sub.DecRef(b.ctx)
	o.ReadOnly = m.ReadOnly
	mnt := b.own(v.NewDisconnectedMount(sub.Mount().Filesystem(), sub.Dentry(), o))
	return vfs.MakeVirtualDentry(mnt, mnt.Root()), nil
}

// knownOptions are those of the options that the file system of the sentry knows.
func knownOptions(options []string, known ...string) string {
	var kept []string
	for _, o := range options {
		if key, _, _ := strings.Cut(o, "="); slices.Contains(known, key) {
			kept = append(kept, o)
		}
	}
	return strings.Join(kept, ",")
}

// devices completes a new /dev.
func (b *box) devices(ctx context.Context, root vfs.VirtualDentry) error {
	if err := b.k.VFS().MkdirAt(ctx, b.root, at(root, "/dev/mqueue"), &vfs.MkdirOptions{Mode: 0o755}); err != nil && errnoOf(err) != unix.EEXIST {
		return asErrno(err)
	}
	return nil
}

// protect hides the masked paths and makes others read-only. A path that the sentry's
// file systems do not have needs neither.
func (b *box) protect(ctx context.Context, root vfs.VirtualDentry) error {
	v := b.k.VFS()
	for _, p := range b.r.ReadOnly {
		if _, err := v.StatAt(ctx, b.root, follow(root, p), &vfs.StatOptions{Mask: linux.STATX_TYPE}); err != nil {
			continue
		}
		err := v.BindAt(ctx, b.root, follow(root, p), follow(root, p), true)
		if err == nil {
			err = b.makeReadOnly(ctx, root, p)
		}
		if err != nil {
			return fmt.Errorf("make read-only %s: %w", p, asErrno(err))
		}
	}
	for _, p := range b.r.Masked {
		st, err := v.StatAt(ctx, b.root, follow(root, p), &vfs.StatOptions{Mask: linux.STATX_TYPE})
		if err != nil {
			continue
		}
		o := tmpfs.FilesystemOpts{RootFileType: linux.S_IFREG}
		if st.Mode&linux.S_IFMT == linux.S_IFDIR {
			o.RootFileType = linux.S_IFDIR
		}
		tree, err := b.disconnected(tmpfs.Name, &vfs.MountOptions{
			ReadOnly: true, Flags: vfs.MountFlags{NoExec: true, NoDev: true, NoSUID: true},
			GetFilesystemOptions: vfs.GetFilesystemOptions{InternalData: o},
		})
		if err == nil {
			err = asNil(v.ConnectMountAt(ctx, b.root, tree.Mount(), follow(root, p)))
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

// makeReadOnly makes the mount that p shows read-only.
func (b *box) makeReadOnly(ctx context.Context, root vfs.VirtualDentry, p string) error {
	d, err := b.k.VFS().GetDentryAt(ctx, b.root, follow(root, p), &vfs.GetDentryOptions{})
	if err != nil {
		return err
	}
	defer d.DecRef(ctx)
	return b.k.VFS().SetMountReadOnly(d.Mount(), true)
}

// asNil is asErrno for what may be nil.
func asNil(err error) error {
	if err == nil {
		return nil
	}
	return asErrno(err)
}
