package sentry

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/tmpfs"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/usermem"

	"den/internal/oci"
	"den/internal/sys"
)

// A file that is bound read-only and that nobody changes is shown as a copy in the memory of the sentry: a gofer
// for it would cost more than the rest of a short step.

// maxCopiedBytes is how large such a file may be.
const maxCopiedBytes = 1 << 20

// content is such a file.
type content struct {
	Data      []byte
	Mode      uint16
	UID, GID  uint32
	MtimeSec  int64
	MtimeNsec uint32
}

// copyOf reads a bound file, if a copy may be shown in its place. It is nil for all that is better
// left to a gofer, whatever the reason.
func copyOf(m oci.Mount, readOnly bool) *content {
	if !m.Fixed || !readOnly {
		return nil
	}
	fd, err := unix.Open(m.Source, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), m.Source)
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxCopiedBytes {
		return nil
	}
	is := sys.Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	if !sys.MayChown() {
		attrs, err := sys.FileAttrsOf(fd)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		is = sys.Seen("", &st, attrs, &sys.Names{}, sys.Self())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCopiedBytes+1))
	if err != nil || len(data) > maxCopiedBytes {
		return nil
	}
	return &content{Data: data, Mode: uint16(is.Mode & 0o7777), UID: is.UID, GID: is.GID, MtimeSec: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec)}
}

// show makes the copy.
func (b *box) show(c *content, o *vfs.MountOptions) (vfs.VirtualDentry, error) {
	o.GetFilesystemOptions.InternalData = tmpfs.FilesystemOpts{RootFileType: linux.S_IFREG, DisableDefaultSizeLimit: true}
	tree, err := b.disconnected(tmpfs.Name, o)
	if err != nil {
		return tree, err
	}
	v := b.k.VFS()
	f, err := v.OpenAt(b.ctx, b.root, at(tree, ""), &vfs.OpenOptions{Flags: linux.O_WRONLY})
	if err != nil {
		return tree, fmt.Errorf("open the copy: %w", asErrno(err))
	}
	n, err := f.Write(b.ctx, usermem.BytesIOSequence(c.Data), vfs.WriteOptions{})
	f.DecRef(b.ctx)
	if err == nil && n < int64(len(c.Data)) {
		err = unix.ENOSPC
	}
	if err != nil && len(c.Data) > 0 {
		return tree, fmt.Errorf("write the copy: %w", asErrno(err))
	}
	return tree, asNil(v.SetStatAt(b.ctx, b.root, at(tree, ""), &vfs.SetStatOptions{Stat: linux.Statx{
		Mask: linux.STATX_UID | linux.STATX_GID | linux.STATX_MODE | linux.STATX_MTIME,
		UID:  c.UID, GID: c.GID, Mode: c.Mode, Mtime: linux.StatxTimestamp{Sec: c.MtimeSec, Nsec: c.MtimeNsec},
	}}))
}
