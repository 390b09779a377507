package sandbox

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/oci"
)

// What follows is how every executor reads a Request.

// Mounts merges the mounts of the specification and of the request, with clean
// targets: a later one takes the place of a default with the same target, and
// /dev of all below it.
func Mounts(r *Request) ([]oci.Mount, error) {
	own := map[string]bool{}
	for _, m := range r.Mounts {
		own[inside(m.Target)] = true
	}
	var all []oci.Mount
	for _, m := range r.Spec.Mounts {
		t := inside(m.Destination)
		if own[t] || own["/dev"] && strings.HasPrefix(t, "/dev/") {
			continue
		}
		all = append(all, oci.Mount{Type: m.Type, Source: m.Source, Target: t, Options: m.Options})
	}
	for _, m := range r.Mounts {
		m.Target = inside(m.Target)
		all = append(all, m)
	}
	for _, m := range all {
		if m.Target == "/" {
			return nil, fmt.Errorf("mount %s: the target is the root", m.Source)
		}
	}
	return all, nil
}

// Leases are all files that the request wants held; last come those of Drain.
func Leases(r *Request) []*os.File {
	files := append([]*os.File{}, r.Hold...)
	files = append(files, r.Root.Hold...)
	for _, m := range r.Mounts {
		files = append(files, m.Hold...)
	}
	return append(files, r.Drain...)
}

// RlimitNumber checks a limit and gives the number of its resource.
func RlimitNumber(l specs.POSIXRlimit) (int, error) {
	name := strings.TrimPrefix(strings.ToUpper(l.Type), "RLIMIT_")
	nr, ok := rlimitNumbers[name]
	switch {
	case !ok:
		return 0, fmt.Errorf("rlimit %.40q: unknown", l.Type)
	case l.Soft > l.Hard:
		return 0, fmt.Errorf("rlimit %s: soft limit %d is above the hard limit %d", name, l.Soft, l.Hard)
	}
	return nr, nil
}

// CheckText refuses what no program can be given.
func CheckText(r *Request) error {
	s := r.Spec
	switch {
	case s == nil || s.Process == nil || s.Linux == nil:
		return fmt.Errorf("sandbox %s: the specification has no process or no linux part", r.ID)
	case len(s.Process.Args) == 0 || s.Process.Args[0] == "":
		return fmt.Errorf("sandbox %s: no command", r.ID)
	}
	for _, lists := range [][]string{s.Process.Args, s.Process.Env, {s.Process.Cwd, s.Hostname}} {
		for _, v := range lists {
			if strings.ContainsRune(v, 0) {
				return fmt.Errorf("sandbox %s: %.40q contains a zero byte", r.ID, v)
			}
		}
	}
	return nil
}
