package sys

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// This file has the operations of the mount API of Linux 5.2 to 5.12 for plans.
// Each returns the Op, so that the caller adds its note and its labels.

// FSOpen begins a new file system of type typ; its context's descriptor goes to c.
func (p *Plan) FSOpen(typ string, c *Cell) *Op {
	return p.Do(unix.SYS_FSOPEN, p.Str(typ), Int(unix.FSOPEN_CLOEXEC)).To(c)
}

// FSString sets a parameter of a file system; the kernel allows 255 bytes.
func (p *Plan) FSString(fs *Cell, key, value string) *Op {
	return p.Do(unix.SYS_FSCONFIG, fs.Value(), Int(unix.FSCONFIG_SET_STRING), p.Str(key), p.Str(value), Int(0))
}

// FSFlag sets a parameter without a value.
func (p *Plan) FSFlag(fs *Cell, key string) *Op {
	return p.Do(unix.SYS_FSCONFIG, fs.Value(), Int(unix.FSCONFIG_SET_FLAG), p.Str(key), Int(0), Int(0))
}

// FSCreate makes the file system of the parameters.
func (p *Plan) FSCreate(fs *Cell) *Op {
	return p.Do(unix.SYS_FSCONFIG, fs.Value(), Int(unix.FSCONFIG_CMD_CREATE), Int(0), Int(0), Int(0))
}

// FSMount makes a mount of it that is attached nowhere; its descriptor goes to c.
func (p *Plan) FSMount(fs, c *Cell, attrs uint64) *Op {
	return p.Do(unix.SYS_FSMOUNT, fs.Value(), Int(unix.FSMOUNT_CLOEXEC), Int(attrs)).To(c)
}

// Close closes what c holds.
func (p *Plan) Close(c *Cell) *Op {
	return p.Do(unix.SYS_CLOSE, c.Value()).MayFail()
}

// CloneTree makes a mount, attached nowhere, of what path shows below dir.
func (p *Plan) CloneTree(dir Arg, path string, c *Cell, recursive bool) *Op {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_NO_AUTOMOUNT)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return p.Do(unix.SYS_OPEN_TREE, dir, p.Str(path), Int(flags)).To(c)
}

// SetMountAttr changes the mount that c holds.
func (p *Plan) SetMountAttr(c *Cell, attr unix.MountAttr, recursive bool) *Op {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	b := make([]byte, 0, unix.MOUNT_ATTR_SIZE_VER0)
	for _, v := range []uint64{attr.Attr_set, attr.Attr_clr, attr.Propagation, attr.Userns_fd} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return p.Do(unix.SYS_MOUNT_SETATTR, c.Value(), p.Str(""), Int(flags), p.Bytes(b), Int(len(b)))
}

// MoveMount attaches the mount that from holds on the place that to holds.
func (p *Plan) MoveMount(from, to Arg) *Op {
	return p.Do(unix.SYS_MOVE_MOUNT, from, p.Str(""), to, p.Str(""),
		Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// openAttempts are for openat2(2) with RESOLVE_IN_ROOT: it says EAGAIN at a ".." if
// anybody on the machine renamed or mounted something meanwhile.
const openAttempts = 8

// OpenInRoot opens path with root as the root directory; no symbolic link leads
// out of it, and none of proc's magic links is followed.
func (p *Plan) OpenInRoot(root Arg, path string, flags uint64, c *Cell) *Op {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	done := p.Label()
	var before []*Op
	for range openAttempts - 1 {
		next := p.Label()
		before = append(before, p.OpenAt2(root, path, how, c).Err(next).Zero(done).Pos(done))
		p.Mark(next)
	}
	o := p.OpenAt2(root, path, how, c)
	p.Mark(done)
	o.before = before
	return o
}

// OpenInRoot is Plan.OpenInRoot for the calling process.
func OpenInRoot(root int, path string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range openAttempts {
		err = retry(func() error {
			fd, err = unix.Openat2(root, path, &how)
			return err
		})
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return fd, err
}

// OpenAt2 is openat2(2).
func (p *Plan) OpenAt2(dir Arg, path string, how unix.OpenHow, c *Cell) *Op {
	b := make([]byte, 0, unix.SizeofOpenHow)
	for _, v := range []uint64{how.Flags, how.Mode, how.Resolve} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return p.Do(unix.SYS_OPENAT2, dir, p.Str(path), p.Bytes(b), Int(len(b))).To(c)
}
