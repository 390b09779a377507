package sandbox_test

import (
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// subidUser finds a user other than root with a range of ids.
func subidUser(t *testing.T) (ids [2]uint32, home string) {
	t.Helper()
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		t.Skip("needs a user with a range of ids: ", err)
	}
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, ":")
		u, err := user.Lookup(name)
		if err != nil || u.Uid == "0" {
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		return [2]uint32{uint32(uid), uint32(gid)}, u.HomeDir
	}
	t.Skip("needs a user with a range of ids: /etc/subuid has none")
	return ids, ""
}

func credential(ids [2]uint32) *syscall.Credential {
	return &syscall.Credential{Uid: ids[0], Gid: ids[1]}
}
