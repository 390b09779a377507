package sandbox

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sys"
)

// A Rung is one strength of isolation.
type Rung string

// Rungs of this build, best first.
const (
	RungPrivileged Rung = "privileged"
	RungUserns     Rung = "userns"
)

// A Choice is the rung to run on and how to get there.
type Choice struct {
	Rung Rung
	// Enter says that the process has to call EnterUserns first.
	Enter bool
	// SharePids says that sandboxes cannot have a pid namespace of their own.
	SharePids bool
	// Lacks are capabilities that what runs expects and will not have, since the
	// outer container does not give them.
	Lacks sys.CapSet
	// Why is one sentence for people.
	Why string
}

// Choose picks the rung for facts. isolation is what the user forced: "",
// "auto", a rung, or a foreign word that means auto. The error, of class
// ErrFailedPrecondition, lists what was tried and what to install or set.
func Choose(f probe.Facts, isolation string) (Choice, error) {
	switch isolation {
	case "", "auto", "default", "oci", "rootless":
		c, ok := here(f)
		if ok && c.Lacks == 0 {
			return c, nil
		}
		if c, ok := enter(f); ok { // in there it has all of them
			return c, nil
		}
		if ok {
			return c, nil
		}
		return Choice{}, fmt.Errorf("isolation: no rung fits this outer container:\n%s\n%s%w", privilegedWhy(f), usernsWhy(f), hidden{errdefs.ErrFailedPrecondition})
	case string(RungPrivileged):
		if c, ok := here(f); ok {
			if c.Rung != RungPrivileged {
				c.Why = "privileged as far as this process goes: device nodes cannot be made"
			}
			return c, nil
		}
		return Choice{}, fmt.Errorf("isolation privileged:\n%s%w", privilegedWhy(f), hidden{errdefs.ErrFailedPrecondition})
	case string(RungUserns):
		c, ok := here(f)
		if ok && c.Rung == RungUserns {
			return c, nil
		}
		if c, ok := enter(f); ok {
			return c, nil
		}
		return Choice{}, fmt.Errorf("isolation userns:\n%s%w", usernsWhy(f), hidden{errdefs.ErrFailedPrecondition})
	case "sentry", "chroot":
		return Choice{}, fmt.Errorf("isolation %s: this build of den has no such rung yet, it has privileged and userns%w", isolation, hidden{errdefs.ErrNotImplemented})
	}
	return Choice{}, fmt.Errorf("isolation %.40q: unknown, want auto, privileged or userns%w", isolation, hidden{errdefs.ErrInvalidArgument})
}

// hidden gives an error a class without repeating its text.
type hidden struct{ class error }

func (hidden) Error() string   { return "" }
func (h hidden) Unwrap() error { return h.class }

// here is the choice to run as this process is.
func here(f probe.Facts) (Choice, bool) {
	if f.Refused != nil {
		return Choice{}, false
	}
	c := Choice{Rung: RungPrivileged, Why: "this process may make namespaces, mounts and device nodes"}
	switch {
	case f.InUserns:
		c.Rung, c.Why = RungUserns, "this process may make namespaces and mounts, inside a user namespace"
	case f.Mknod != 0:
		c.Rung, c.Why = RungUserns, "this process may make namespaces and mounts, but no device nodes"
	}
	if c.Lacks = Lacks(f.CapEff); c.Lacks != 0 {
		c.Why += fmt.Sprintf("; without %s, which the outer container does not give: steps that need them fail (docker run --cap-add)", strings.Join(c.Lacks.Names(), ", "))
	}
	return c.shared(f.Trial), true
}

// Lacks are the capabilities without which root is not what steps take it for, and
// that effective does not hold: to change users, and to give files owners, modes and capabilities.
func Lacks(effective sys.CapSet) sys.CapSet {
	const expected = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
		1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_SETFCAP
	return expected &^ effective
}

// shared says so where sandboxes cannot have process ids of their own.
func (c Choice) shared(t probe.Trial) Choice {
	if t.FreshProc != 0 {
		c.SharePids = true
		c.Why += "; below the outer container's masked /proc it may not mount another, so that sandboxes share its process ids: they see and can signal each other's processes and den's (start the outer container with systempaths=unconfined)"
	}
	return c
}

// enter is the choice to go into a user namespace first.
func enter(f probe.Facts) (Choice, bool) {
	if Entered() || f.IDs.Missing != "" || f.Userns.Refused != nil {
		return Choice{}, false
	}
	how := "newuidmap"
	if f.IDs.Own {
		how = "its own CAP_SETUID"
	}
	c := Choice{Rung: RungUserns, Enter: true, Why: "a user namespace with a range of ids, mapped by " + how}
	return c.shared(f.Userns), true
}

func privilegedWhy(f probe.Facts) string {
	why := fmt.Sprintf("  privileged: %v", f.Refused)
	switch {
	case f.Refused == nil:
		return "  privileged: not tried"
	case f.Refused.Call == "setgroups" && f.CapEff.Has(unix.CAP_SETGID):
		return why + "; this user namespace was made with setgroups denied, as for a single id"
	case !f.CapEff.Has(unix.CAP_SYS_ADMIN):
		return why + "; it needs CAP_SYS_ADMIN: docker run --privileged, or Kubernetes securityContext.privileged: true"
	}
	if advice := remedy(f.Refused); advice != "" {
		return why + "; " + advice
	}
	return why + "; a seccomp, AppArmor or SELinux policy forbids it though CAP_SYS_ADMIN is there: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged"
}

func usernsWhy(f probe.Facts) string {
	var why string
	refused := f.Userns.Refused
	switch {
	case Entered():
		why = fmt.Sprintf("inside the user namespace: %v", f.Refused)
	case refused == nil:
	case refused.Call == "unshare":
		why = fmt.Sprintf("unshare(CLONE_NEWUSER): %v; allow it: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or Kubernetes hostUsers: false with an unconfined seccomp profile", refused.Errno)
	default:
		why = fmt.Sprintf("inside a user namespace: %v", refused)
		advice := remedy(refused)
		if advice == "" && refused.Call != "" {
			advice = "an AppArmor, SELinux or seccomp policy forbids it: docker run --security-opt apparmor=unconfined --security-opt seccomp=unconfined"
		}
		if advice != "" {
			why += "; " + advice
		}
	}
	if len(f.Settings) > 0 {
		why += "; kernel settings against it: " + strings.Join(f.Settings, ", ")
	}
	if f.IDs.Missing != "" {
		why += "; a range of ids: " + f.IDs.Missing
	}
	return "  userns: " + strings.TrimPrefix(why, "; ")
}

// remedy is what to set so that one particular call works; "" where nothing in
// particular is known.
func remedy(r *probe.Refusal) string {
	switch r.Call {
	case "pivot_root":
		// Docker's default profile allows the other calls with CAP_SYS_ADMIN, and this one never.
		return "the outer container's seccomp profile forbids pivot_root, whatever the capabilities: docker run --security-opt seccomp=unconfined (Kubernetes seccompProfile: Unconfined), or a profile that allows it"
	case "prctl":
		return "it needs CAP_SETPCAP: docker run --cap-add SETPCAP"
	case "setgroups", "setresgid", "setresuid":
		return "it needs CAP_SETUID and CAP_SETGID: docker run --cap-add SETUID --cap-add SETGID"
	}
	if r.Errno == unix.ENOSYS {
		return "a kernel older than Linux 5.12, or a seccomp profile older than this call: docker run --security-opt seccomp=unconfined"
	}
	return ""
}
