package ops

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"den/internal/oci"
	"den/internal/tree"
)

// maxUserFileBytes bounds what is read of an image's /etc/passwd.
const maxUserFileBytes = 10 << 20

// An execUser is who a command runs as.
type execUser struct {
	uid, gid uint32
	groups   []uint32
}

// lookUpUser finds the user of a command in the image's own files. The empty
// user is root, with root's groups. Docker's forms: name, uid, name:group,
// uid:gid and mixtures. Both ids given as numbers need no file.
func (e *Env) lookUpUser(fs tree.FS, spec string) (execUser, error) {
	if u, ok := numericUser(spec); ok {
		return u, nil
	}
	passwd, passwdID, err := openUserFile(fs, "/etc/passwd")
	if err != nil {
		return execUser{}, err
	}
	defer passwd.Close()
	group, groupID, err := openUserFile(fs, "/etc/group")
	if err != nil {
		return execUser{}, err
	}
	defer group.Close()
	find := func() (execUser, error) { return findUser(passwd, group, spec) }
	if passwdID == "" || groupID == "" {
		return find()
	}
	return memoise(e, strings.Join([]string{"user", passwdID, groupID, spec}, "\x00"), find)
}

func findUser(passwd, group io.Reader, spec string) (execUser, error) {
	want := spec
	if want == "" {
		want = "0"
	}
	found, err := user.GetExecUser(want, nil, passwd, group)
	if err != nil {
		if spec == "" && !errors.Is(err, oci.ErrTooLarge) {
			return execUser{}, nil
		}
		return execUser{}, fmt.Errorf("user %q: %w: %w", spec, err, errdefs.ErrInvalidArgument)
	}
	u := execUser{uid: uint32(found.Uid), gid: uint32(found.Gid)}
	for _, g := range found.Sgids {
		u.groups = append(u.groups, uint32(g))
	}
	return u, nil
}

// numericUser reads "uid:gid".
func numericUser(spec string) (execUser, bool) {
	us, gs, ok := strings.Cut(spec, ":")
	if !ok {
		return execUser{}, false
	}
	uid, err1 := parseID(us)
	gid, err2 := parseID(gs)
	return execUser{uid: uid, gid: gid}, err1 == nil && err2 == nil
}

func parseID(s string) (uint32, error) {
	if s == "root" {
		return 0, nil
	}
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err
}

// openUserFile opens a file of an image that may be missing, and names its
// content: a layer's files never change, so their inode does.
func openUserFile(fs tree.FS, name string) (io.ReadCloser, string, error) {
	none := func() (io.ReadCloser, string, error) { return io.NopCloser(strings.NewReader("")), "none", nil }
	if fs == nil {
		return none()
	}
	p, err := tree.Resolve(fs, name)
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", name, err)
	}
	ent, err := fs.Lstat(p)
	if errors.Is(err, os.ErrNotExist) || errdefs.IsNotFound(err) || err == nil && ent.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return none()
	}
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", name, err)
	}
	f, err := fs.Open(p)
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", name, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{&boundedReader{r: f, left: maxUserFileBytes, name: name}, f}, inodeOf(f), nil
}

// inodeOf identifies an open file of a layer, or returns "".
func inodeOf(r io.Reader) string {
	f, ok := r.(*os.File)
	if !ok {
		return ""
	}
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d:%d", sys.Dev, sys.Ino, sys.Size, sys.Ctim.Nano())
}

// A boundedReader fails, rather than ends, when there is more than it may read.
type boundedReader struct {
	r    io.Reader
	left int64
	name string
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("%s: %w", b.name, oci.ErrTooLarge)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}
