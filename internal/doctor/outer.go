package doctor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/probe"
)

// outerChecks are the facts: what the outer container allows is no shortfall by
// itself.
func outerChecks(in Input) []Check {
	f := in.Facts
	var l []Check
	fact := func(id string, status Status, text string) {
		l = append(l, Check{ID: id, Area: areaOuter, Status: status, Text: text})
	}
	tried := func(id string, errno unix.Errno, yes, call string) {
		switch errno {
		case 0:
			fact(id, OK, yes)
		case unix.ECANCELED:
			fact(id, Note, "not tried: something before it is not allowed")
		default:
			fact(id, Note, fmt.Sprintf("%s: %v", call, errno))
		}
	}
	t := f.Trial
	if f.Refused != nil {
		t = f.Userns
	}
	fact("outer.process", OK, process(f))
	refusal("outer.namespaces", f.Refused, "this process may make namespaces and mounts", fact)
	refusal("outer.userns", f.Userns.Refused, "user namespaces may be made, and mounts in them", fact)
	if f.IDs.Missing == "" {
		fact("outer.ids", OK, "a range of ids can be mapped by "+mapper(f.IDs))
	} else {
		fact("outer.ids", Note, f.IDs.Missing)
	}
	tried("outer.overlay", t.Overlay, "an overlay with its upper directory in the store", "overlay in the store")
	tried("outer.proc", t.FreshProc, "a /proc for new process ids", "a /proc for new process ids")
	tried("outer.chroot", f.Chroot.Refused, "chroot(2)", "chroot(2)")
	tried("outer.devices", f.Chroot.Devices, "device nodes can be made and opened", "device nodes")
	switch {
	case f.Sentry == nil:
		fact("outer.sentry", Note, "this build of den has no sentry")
	case f.Sentry.Err == nil && f.Sentry.Platform == "":
		fact("outer.sentry", Note, "it was not tried to the end in time")
	case f.Sentry.Err != nil:
		fact("outer.sentry", Note, f.Sentry.Err.Error())
	default:
		fact("outer.sentry", OK, "a kernel in user space runs, by "+f.Sentry.Platform)
	}
	if f.CgroupErr == "" {
		fact("outer.cgroups", OK, fmt.Sprintf("cgroups of version %d can be made", f.Cgroup))
	} else {
		fact("outer.cgroups", Note, f.CgroupErr)
	}
	return l
}

func refusal(id string, r *probe.Refusal, yes string, fact func(string, Status, string)) {
	if r == nil {
		fact(id, OK, yes)
		return
	}
	fact(id, Note, r.Error())
}

func mapper(r probe.IDRange) string {
	if r.Own {
		return "den's own capabilities"
	}
	return r.Newuidmap
}

// process says who den is and what confines it.
func process(f probe.Facts) string {
	parts := []string{fmt.Sprintf("uid %d", f.UID)}
	switch n := len(f.CapEff.Names()); {
	case n == 0:
		parts = append(parts, "no capabilities")
	default:
		parts = append(parts, fmt.Sprintf("%d capabilities", n))
	}
	if f.InUserns {
		parts = append(parts, "in a user namespace")
	}
	if f.NoNewPrivs {
		parts = append(parts, "no_new_privs")
	}
	if f.Security.Seccomp {
		parts = append(parts, "a seccomp filter")
	}
	if f.Security.AppArmor != "" {
		parts = append(parts, "AppArmor profile "+f.Security.AppArmor)
	}
	if f.Security.SELinux != "" {
		parts = append(parts, "SELinux type "+f.Security.SELinux)
	}
	if f.Kernel != "" {
		parts = append(parts, "Linux "+f.Kernel)
	}
	return strings.Join(parts, ", ")
}
