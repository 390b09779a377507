package sys

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direntName is the offset of d_name in struct linux_dirent64.
const direntName = int(unsafe.Offsetof(unix.Dirent{}.Name))

// ReadNames returns the names in the directory fd, from its beginning, without
// "." and "..", in the order of the file system.
func ReadNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	var buf [16 << 10]byte
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, buf[:])
			return err
		})
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		names = appendNames(names, buf[:n])
	}
}

func appendNames(names []string, buf []byte) []string {
	for len(buf) > direntName {
		size := int(binary.NativeEndian.Uint16(buf[unsafe.Offsetof(unix.Dirent{}.Reclen):]))
		if size <= direntName || size > len(buf) {
			return names
		}
		name := buf[direntName:size]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); s != "." && s != ".." && s != "" {
			names = append(names, s)
		}
		buf = buf[size:]
	}
	return names
}
