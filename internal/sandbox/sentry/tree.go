package sentry

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/checkpoint"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/erofs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/gofer"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/overlay"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/tmpfs"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// disconnected makes a mount that is attached nowhere.
func (b *box) disconnected(name string, o *vfs.MountOptions) (vfs.VirtualDentry, error) {
	o.GetFilesystemOptions.InternalMount = true
	m, err := b.k.VFS().MountDisconnected(b.ctx, b.root, name, name, o)
	if err != nil {
		return vfs.VirtualDentry{}, fmt.Errorf("mount %s: %w", name, asErrno(err))
	}
	b.own(m)
	return vfs.MakeVirtualDentry(m, m.Root()), nil
}

// own notes a mount whose reference is the box's.
func (b *box) own(m *vfs.Mount) *vfs.Mount {
	b.trees = append(b.trees, m)
	return m
}

// memory makes an empty tmpfs.
func (b *box) memory(o tmpfs.FilesystemOpts) (vfs.VirtualDentry, error) {
	o.DisableDefaultSizeLimit = true
	return b.disconnected(tmpfs.Name, &vfs.MountOptions{GetFilesystemOptions: vfs.GetFilesystemOptions{InternalData: o}})
}

// lower makes the tree of a part of a layer.
func (b *box) lower(l lower) (vfs.VirtualDentry, error) {
	fd, err := b.fd(l.FD)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	switch l.Kind {
	case kindImage:
		return b.disconnected(erofs.Name, &vfs.MountOptions{
			ReadOnly: true, GetFilesystemOptions: vfs.GetFilesystemOptions{Data: fmt.Sprintf("ifd=%d", fd)},
		})
	case kindTar:
		return b.memory(tmpfs.FilesystemOpts{SourceTar: os.NewFile(uintptr(fd), "layer.xtar")})
	case kindGofer:
		return b.disconnected(gofer.Name, goferOptions(fd, true))
	}
	return vfs.VirtualDentry{}, fmt.Errorf("layer of kind %.40q: unknown", l.Kind)
}

// goferOptions are those of a tree that a gofer shows. Others may change what is
// bound; layers never change.
func goferOptions(fd int, immutable bool) *vfs.MountOptions {
	data := fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%d", fd, fd)
	if !immutable {
		data += ",cache=remote_revalidating"
	}
	return &vfs.MountOptions{
		ReadOnly:             immutable,
		GetFilesystemOptions: vfs.GetFilesystemOptions{Data: data, InternalData: gofer.InternalFilesystemOptions{}},
	}
}

func (b *box) lowerTrees(parts []lower) ([]vfs.VirtualDentry, error) {
	var trees []vfs.VirtualDentry
	for _, l := range parts {
		t, err := b.lower(l)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// overlay merges trees, top first, below upper if there is one. With userxattr
// the marks in directories are those that den's layers on disk have.
func (b *box) overlay(upper vfs.VirtualDentry, lowers []vfs.VirtualDentry, readOnly bool) (vfs.VirtualDentry, error) {
	return b.disconnected(overlay.Name, &vfs.MountOptions{
		ReadOnly: readOnly,
		GetFilesystemOptions: vfs.GetFilesystemOptions{
			Data: "userxattr", InternalData: overlay.FilesystemOptions{UpperRoot: upper, LowerRoots: lowers},
		},
	})
}

// rootTree makes the root file system. Mount points that a stack of layers
// lacks are in a tree of their own on top of it, so that what is written
// holds nothing but the payload's changes.
func (b *box) rootTree() (vfs.VirtualDentry, error) {
	r := &b.r.Root
	if r.BindFD >= 0 {
		fd, err := b.fd(r.BindFD)
		if err != nil {
			return vfs.VirtualDentry{}, err
		}
		return b.disconnected(gofer.Name, goferOptions(fd, !r.Writable))
	}
	lowers, err := b.lowerTrees(r.Lower)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	stubs, err := b.memory(tmpfs.FilesystemOpts{})
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	bottom, err := b.memory(tmpfs.FilesystemOpts{})
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	b.lowers = lowers
	view, err := b.overlay(vfs.VirtualDentry{}, pile(2, bottom, lowers...), true)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	made, err := b.stubs(view, stubs)
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	all := lowers
	if made { // or there is one tree less to look into
		all = append([]vfs.VirtualDentry{stubs}, lowers...)
	}
	if !r.Writable {
		return b.overlay(vfs.VirtualDentry{}, pile(2, bottom, all...), true)
	}
	if err := b.makeUpper(r.UpperFD, view); err != nil {
		return vfs.VirtualDentry{}, err
	}
	return b.overlay(b.upper, pile(1, bottom, all...), false)
}

// pile is the trees, and below them an empty one until they are as many as an overlay needs.
func pile(least int, empty vfs.VirtualDentry, trees ...vfs.VirtualDentry) []vfs.VirtualDentry {
	all := slices.Clone(trees)
	for len(all) < least {
		all = append(all, empty)
	}
	return all
}

// commonDirectories are on the way to most of what programs open, links to them among them.
var commonDirectories = []string{
	"/bin", "/etc", "/lib", "/lib64", "/sbin", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib/aarch64-linux-gnu",
	"/usr/lib/x86_64-linux-gnu", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/local/sbin", "/usr/sbin",
	"/usr/share", "/usr/share/doc", "/var", "/var/cache", "/var/lib", "/var/lib/dpkg", "/var/lib/dpkg/info",
}

// keepCommon keeps the common directories of a root in memory: an overlay forgets a directory that nobody has open, and
// asks all its layers for it again when the next path goes through it.
func (b *box) keepCommon(root vfs.VirtualDentry) {
	for _, p := range commonDirectories {
		if d, err := b.k.VFS().GetDentryAt(b.ctx, b.root, at(root, p), &vfs.GetDentryOptions{}); err == nil {
			b.common = append(b.common, d)
		}
	}
}

// makeUpper makes the tree that takes the changes. Its files' content is in the
// file on disk, so that it costs the outer container no memory that cannot be reclaimed.
func (b *box) makeUpper(index int, view vfs.VirtualDentry) error {
	var o tmpfs.FilesystemOpts
	if index >= 0 {
		fd, err := b.fd(index)
		if err != nil {
			return err
		}
		o.MemoryFile, err = pgalloc.NewMemoryFile(os.NewFile(uintptr(fd), "upper"), pgalloc.MemoryFileOpts{
			DiskBackedFile: true, DisableIMAWorkAround: true,
			// With an id it ends with its file system.
			ResourceID: checkpoint.ResourceID{ContainerName: b.id, Path: "upper"},
		})
		if err != nil {
			return fmt.Errorf("file of the upper tree: %w", err)
		}
	}
	var err error
	if b.upper, err = b.memory(o); err != nil {
		return err
	}
	return b.copyAttributes(view, b.upper, "/")
}

// stubs makes, in the tree of that name, the mount points that view lacks, and reports whether there
// are any. Those below another mount are that mount's affair.
func (b *box) stubs(view, stubs vfs.VirtualDentry) (made bool, err error) {
	if err := b.copyAttributes(view, stubs, "/"); err != nil {
		return false, err
	}
	var mounted []string
next:
	for _, m := range b.r.Mounts {
		l, err := b.locate(b.ctx, view, m.Target)
		if err != nil {
			return false, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		full := l.full()
		for _, p := range mounted {
			if strings.HasPrefix(full, p+"/") {
				continue next
			}
		}
		mounted = append(mounted, full)
		if len(l.missing) == 0 {
			continue
		}
		made = true
		if err := b.copyDirs(view, stubs, l.have); err != nil {
			return false, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		// What an earlier one has made already is no error.
		if _, err := b.create(b.ctx, stubs, l, !m.isFile()); err != nil {
			return false, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		if err := b.copyAttributes(view, stubs, l.have); err != nil { // its times
			return false, fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return made, nil
}

// isFile says that the mount shows something that is no directory.
func (m *mount) isFile() bool { return m.Kind != 0 && m.Kind != linux.S_IFDIR }
