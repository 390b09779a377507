package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// maxPasswdBytes bounds what is read of a sandbox's /etc/passwd.
const maxPasswdBytes = 4 << 20

// home is the home directory of the payload's user; "/" if it has none.
func (s *running) home() ([]byte, error) {
	root, err := s.rootDir()
	if err != nil {
		return nil, err
	}
	f, err := openRegular(int(root.Fd()), "etc/passwd")
	if err != nil {
		return []byte("/"), nil //nolint:nilerr // an image without users is common
	}
	defer f.Close()
	return []byte(HomeOf(f, s.program.spec.Process.User.UID)), nil
}

// HomeOf reads passwd(5).
func HomeOf(r io.Reader, uid uint32) string {
	sc := bufio.NewScanner(io.LimitReader(r, maxPasswdBytes))
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) < 6 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && uint32(n) == uid && f[5] != "" && len(f[5]) <= maxHome && !strings.ContainsRune(f[5], 0) {
			return f[5]
		}
	}
	return "/"
}

// openRegular opens a file inside root if it is one: opening a pipe or a
// device of a hostile image could wait or do something.
func openRegular(root int, path string) (*os.File, error) {
	fd, err := sys.OpenInRoot(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}
