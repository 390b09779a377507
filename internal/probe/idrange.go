package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// maxSubidBytes bounds /etc/subuid and /etc/subgid.
const maxSubidBytes = 1 << 20

// idRange finds out how a range of ids can be mapped.
func idRange(f *Facts) IDRange {
	if r, ok := ownRange(f.CapEff); ok {
		return r
	}
	r, h := helperRange(f.UID)
	h.oneID = f.OneID
	h.noNewPrivs = f.NoNewPrivs
	h.caps = hasAll(f.CapBnd, unix.CAP_SETUID, unix.CAP_SETGID)
	r.Missing = h.missing()
	return r
}

// oneID reports whether there is one id in this user namespace, so that no other
// can be mapped into one below it.
func oneID() bool {
	maps, err := sys.SelfIDMap("uid")
	return err == nil && sys.CountIDs(maps) < 2
}

// ownRange maps every id that the process has to itself, which its own
// capabilities allow.
func ownRange(caps sys.CapSet) (IDRange, bool) {
	if !hasAll(caps, unix.CAP_SETUID, unix.CAP_SETGID) {
		return IDRange{}, false
	}
	r := IDRange{Own: true}
	for _, k := range []struct {
		kind string
		to   *[]IDMap
	}{{"uid", &r.UIDMap}, {"gid", &r.GIDMap}} {
		maps, err := sys.SelfIDMap(k.kind)
		if err != nil || sys.CountIDs(maps) < 2 {
			return IDRange{}, false
		}
		for _, m := range maps {
			*k.to = append(*k.to, IDMap{Inside: m.Inside, Outside: m.Inside, Count: m.Count})
		}
	}
	return r, true
}

// helpers is what newuidmap and newgidmap need to map a range of ids.
type helpers struct {
	uid              int
	name             string // of the user, "" without a line in /etc/passwd
	found            bool   // both are in PATH
	powerless        string // one that gives no right to its caller
	ranges           error  // why there is no range in /etc/subuid or /etc/subgid
	oneID            bool   // in the user namespace around den: nothing else helps
	noNewPrivs, caps bool   // caps: CAP_SETUID and CAP_SETGID can be had
}

// helperRange maps the user to 0 and the ranges that the administrator gave the user
// from 1 on, which the setuid helpers of the package uidmap allow.
func helperRange(uid int) (r IDRange, h helpers) {
	h.uid = uid
	r.Newuidmap, _ = exec.LookPath("newuidmap")
	r.Newgidmap, _ = exec.LookPath("newgidmap")
	h.found = r.Newuidmap != "" && r.Newgidmap != ""
	for _, p := range []string{r.Newgidmap, r.Newuidmap} {
		if !raises(p) {
			h.powerless = p
		}
	}
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name, h.name = u.Username, u.Username
	}
	for _, k := range []struct {
		file string
		id   int
		to   *[]IDMap
	}{{"/etc/subuid", uid, &r.UIDMap}, {"/etc/subgid", os.Getegid(), &r.GIDMap}} {
		ranges, err := subidRanges(k.file, name, uid)
		h.ranges = errors.Join(h.ranges, err)
		*k.to = append([]IDMap{{Inside: 0, Outside: uint32(k.id), Count: 1}}, ranges...)
	}
	return r, h
}

// missing says everything that a user has to set or install before the helpers
// work; "" if they should.
func (h helpers) missing() string {
	if h.oneID {
		return "the user namespace around den has one id only: make it with a range of them (newuidmap, unshare --map-auto, or Kubernetes hostUsers: false)"
	}
	if h.uid == 0 && !h.caps {
		return "it needs CAP_SETUID, CAP_SETGID and CAP_SETFCAP: docker run --cap-add SETUID --cap-add SETGID --cap-add SETFCAP"
	}
	var m []string
	if h.noNewPrivs {
		m = append(m, "no_new_privs is set, so that newuidmap cannot map a range of ids: run the outer container without no-new-privileges (Kubernetes: allowPrivilegeEscalation: true)")
	}
	if !h.caps {
		m = append(m, "newuidmap needs CAP_SETUID and CAP_SETGID in the outer container's bounding set: docker run --cap-add SETUID --cap-add SETGID")
	}
	switch {
	case !h.found:
		m = append(m, "newuidmap and newgidmap are not in PATH: install the package uidmap")
	case h.powerless != "":
		m = append(m, h.powerless+" is neither setuid nor has file capabilities: install the package uidmap anew, on a file system that is not mounted nosuid")
	}
	name := h.name
	if name == "" {
		name = "NAME"
		m = append(m, fmt.Sprintf("the uid %d has no line in /etc/passwd, by which newuidmap knows its user: useradd --uid %d NAME", h.uid, h.uid))
	}
	if h.ranges != nil {
		m = append(m, fmt.Sprintf("%s: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
			strings.ReplaceAll(h.ranges.Error(), "\n", ", "), name))
	}
	return strings.Join(m, "; ")
}

// raises reports whether executing path gives a right to its caller.
func raises(path string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	return st.Mode()&os.ModeSetuid != 0 || hasFileCaps(path)
}

// subidRanges reads the ranges of the user from file and lines them up from
// inside id 1 on.
func subidRanges(file, name string, uid int) ([]IDMap, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	maps := parseSubid(io.LimitReader(f, maxSubidBytes), name, uid)
	if len(maps) == 0 {
		return nil, fmt.Errorf("%s has no line for %s", file, name)
	}
	return maps, nil
}

// parseSubid reads lines of the form name:start:count (subuid(5)) and ignores
// others, as newuidmap does.
func parseSubid(r io.Reader, name string, uid int) []IDMap {
	var maps []IDMap
	inside := uint64(1)
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start+count > 1<<32-1 || inside+count > 1<<32-1 {
			continue
		}
		maps = append(maps, IDMap{Inside: uint32(inside), Outside: uint32(start), Count: uint32(count)})
		inside += count
		if len(maps) == 300 { // the kernel takes 340 lines
			break
		}
	}
	return maps
}
