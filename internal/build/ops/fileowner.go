package ops

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// fileMaxUsers bounds an /etc/passwd or /etc/group that is read for names.
const fileMaxUsers = 10 << 20

const (
	filePasswd = "/etc/passwd"
	fileGroup  = "/etc/group"
)

// fileOwner is who new files belong to.
type fileOwner struct{ uid, gid uint32 }

// readOwner finds out who opt means. Names are looked up in the trees users
// and groups; one that is not there is 0, as in BuildKit.
func readOwner(opt *pb.ChownOpt, users, groups fileView) (*fileOwner, error) {
	if opt == nil {
		return nil, nil
	}
	o := &fileOwner{}
	switch u := opt.GetUser().GetUser().(type) {
	case *pb.UserOpt_ByID:
		o.uid, o.gid = u.ByID, u.ByID
	case *pb.UserOpt_ByName:
		if err := o.user(users, u.ByName.GetName()); err != nil {
			return nil, err
		}
	}
	switch g := opt.GetGroup().GetUser().(type) {
	case *pb.UserOpt_ByID:
		o.gid = g.ByID
	case *pb.UserOpt_ByName:
		if err := o.group(groups, g.ByName.GetName()); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *fileOwner) user(v fileView, name string) error {
	r, err := openUsers(v, filePasswd)
	if r == nil || err != nil {
		return err
	}
	defer r.Close()
	found, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == name })
	if err == nil && len(found) > 0 {
		o.uid, o.gid = uint32(found[0].Uid), uint32(found[0].Gid)
	}
	return err
}

func (o *fileOwner) group(v fileView, name string) error {
	r, err := openUsers(v, fileGroup)
	if r == nil || err != nil {
		return err
	}
	defer r.Close()
	found, err := user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == name })
	if err == nil && len(found) > 0 {
		o.gid = uint32(found[0].Gid)
	}
	return err
}

// openUsers opens a user database; nil is one that does not exist.
func openUsers(v fileView, p string) (io.ReadCloser, error) {
	if v == nil {
		return nil, fmt.Errorf("%s: no tree to look it up in: %w", p, errdefs.ErrInvalidArgument)
	}
	real, err := rootPath(v, p)
	if err == nil {
		e, lerr := v.lstat(real)
		switch {
		case lerr != nil:
			err = lerr
		case e.Mode&unix.S_IFMT != unix.S_IFREG:
			return nil, fmt.Errorf("%s: not a regular file: %w", p, errdefs.ErrInvalidArgument)
		case e.Size > fileMaxUsers:
			return nil, fmt.Errorf("%s: %d bytes, at most %d are read: %w", p, e.Size, fileMaxUsers, errdefs.ErrInvalidArgument)
		default:
			return v.open(real)
		}
	}
	if isNotExist(err) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	return nil, err
}
