package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// maxHelperBytes is how much of a helper's output becomes part of an error.
const maxHelperBytes = 512

// Map gives the ids to the user namespace of the process pid, which has just made
// it. The error says what helps.
func (r IDRange) Map(ctx context.Context, pid int) error {
	for _, k := range []struct {
		kind, helper, file string
		maps               []IDMap
	}{{"uid", r.Newuidmap, "/etc/subuid", r.UIDMap}, {"gid", r.Newgidmap, "/etc/subgid", r.GIDMap}} {
		var err error
		if r.Own {
			err = writeMap(pid, k.kind, k.maps)
		} else {
			err = runHelper(ctx, k.helper, k.file, pid, k.maps)
		}
		if err != nil {
			return fmt.Errorf("map %ss: %w", k.kind, err)
		}
	}
	return nil
}

func writeMap(pid int, kind string, maps []IDMap) error {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&b, "%d %d %d\n", m.Inside, m.Outside, m.Count)
	}
	// The kernel takes the whole map in one write.
	err := os.WriteFile(fmt.Sprintf("/proc/%d/%s_map", pid, kind), []byte(b.String()), 0)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: mapping id 0 needs CAP_SETFCAP, other ids CAP_SETUID and CAP_SETGID: give the outer container these three (docker run --cap-add)", err)
	}
	return err
}

func runHelper(ctx context.Context, helper, file string, pid int, maps []IDMap) error {
	args := []string{strconv.Itoa(pid)}
	for _, m := range maps {
		args = append(args, fmt.Sprint(m.Inside), fmt.Sprint(m.Outside), fmt.Sprint(m.Count))
	}
	out, err := exec.CommandContext(ctx, helper, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(out[:min(len(out), maxHelperBytes)]))
	if said == "" {
		said = err.Error()
	}
	st, _ := sys.SelfStatus()
	return fmt.Errorf("%s: %s; %s", helper, said, helperAdvice(said, file, st.Bounding, hasFileCaps(helper)))
}

// helperAdvice says what lets newuidmap or newgidmap do its work. The kernel
// wants the writer of a map to have rights over the new user namespace: its maker has them,
// and a program with file capabilities still is its maker. One that is setuid root
// is not, and needs CAP_SYS_ADMIN (user_namespaces(7)).
func helperAdvice(said, file string, bounding sys.CapSet, fileCaps bool) string {
	switch {
	case !bounding.Has(unix.CAP_SETUID) || !bounding.Has(unix.CAP_SETGID):
		return "the outer container must have CAP_SETUID and CAP_SETGID for it: docker run --cap-add SETUID --cap-add SETGID"
	case strings.Contains(said, "not allowed"):
		return "the lines in " + file + " do not allow this range"
	case !fileCaps && !bounding.Has(unix.CAP_SYS_ADMIN):
		return "it is setuid root, and that needs CAP_SYS_ADMIN in the outer container; file capabilities do not: " +
			"chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap; setcap cap_setuid=ep /usr/bin/newuidmap; setcap cap_setgid=ep /usr/bin/newgidmap (package libcap2-bin)"
	}
	return "the lines in /etc/subuid and /etc/subgid must allow it, and the outer container setuid programs and their capabilities"
}

// hasFileCaps reports whether executing path gives capabilities to its caller.
func hasFileCaps(path string) bool {
	n, err := unix.Getxattr(path, "security.capability", nil)
	return err == nil && n > 0
}
