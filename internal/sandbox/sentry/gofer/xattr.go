package gofer

import (
	"math"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

// visible says whether an attribute exists for the sandbox: the user's, but
// den's own, and a file's capabilities. Labels and access lists are the
// machine's.
func visible(name string) bool {
	if name == sys.CapabilityAttr {
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && len(name) <= 255 && !strings.HasPrefix(name, "user.den.")
}

// hasAttrs says whether the file can have attributes in the sandbox; what
// stands for a node cannot.
func (h *handle) hasAttrs() bool {
	return attributed(h.kind) && uint32(h.FileType()) == h.kind
}

// GetXattr implements lisafs.ControlFDImpl.
func (h *handle) GetXattr(name string, size uint32, buffer func(uint32) []byte) (uint16, error) {
	if !visible(name) || !h.hasAttrs() {
		return 0, unix.ENODATA
	}
	// A length of 64 KiB, the kernel's limit, is one too many for the protocol.
	if size == 0 || size > math.MaxUint16 {
		size = math.MaxUint16
	}
	buf := buffer(size)
	var n int
	err := h.admitted(func() (err error) {
		n, err = unix.Getxattr(procPath(h.fd), name, buf)
		return err
	})
	if err != nil {
		return 0, err
	}
	return uint16(n), nil
}

// SetXattr implements lisafs.ControlFDImpl.
func (h *handle) SetXattr(name, value string, flags uint32) error {
	switch {
	case h.t.readOnly:
		return unix.EROFS
	case strings.HasPrefix(name, "user.") && !h.hasAttrs(), strings.HasPrefix(name, "user.den."):
		return unix.EPERM
	case !visible(name):
		return unix.EOPNOTSUPP
	}
	return h.admitted(func() error { return unix.Setxattr(procPath(h.fd), name, []byte(value), int(flags)) })
}

// ListXattr implements lisafs.ControlFDImpl.
func (h *handle) ListXattr(uint64) (lisafs.StringArray, error) {
	if !h.hasAttrs() {
		return nil, nil
	}
	all, err := sys.ListXattr(procPath(h.fd))
	if err != nil {
		return nil, err
	}
	var names lisafs.StringArray
	for _, name := range all {
		if visible(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// RemoveXattr implements lisafs.ControlFDImpl. lisafs does not keep it from
// connections that are read-only.
func (h *handle) RemoveXattr(name string) error {
	switch {
	case h.t.readOnly:
		return unix.EROFS
	case !visible(name) || !h.hasAttrs():
		return unix.ENODATA
	}
	return h.admitted(func() error { return unix.Removexattr(procPath(h.fd), name) })
}
