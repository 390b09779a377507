package sandbox

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
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
	// Why is one sentence for people.
	Why string
}

// Choose picks the rung for facts. isolation is what the user forced: "",
// "auto", a rung, or a foreign word that means auto. The error, of class
// ErrFailedPrecondition, lists what was tried and what to install or set.
func Choose(f probe.Facts, isolation string) (Choice, error) {
	switch isolation {
	case "", "auto", "default", "oci", "rootless":
		if c, ok := here(f); ok {
			return c, nil
		}
		if c, ok := enter(f); ok {
			return c, nil
		}
		return Choice{}, fmt.Errorf("isolation: no rung fits this outer container:\n%s\n%s%w", privilegedWhy(f), usernsWhy(f), hidden{errdefs.ErrFailedPrecondition})
	case string(RungPrivileged):
		if c, ok := here(f); ok {
			if c.Rung != RungPrivileged {
				c.Why = "privileged as far as this user namespace goes: device nodes cannot be made"
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
	if f.Mount != 0 {
		return Choice{}, false
	}
	c := Choice{Rung: RungPrivileged, Why: "this process may make namespaces and mounts"}
	if f.InUserns || f.Mknod != 0 {
		c.Rung, c.Why = RungUserns, "this process may make namespaces and mounts, inside a user namespace"
	}
	if f.FreshProc != 0 {
		c.SharePids = true
		c.Why += "; below the outer container's masked /proc it may not mount another, so that sandboxes share its process ids: they see and can signal each other's processes and den's (start the outer container with systempaths=unconfined)"
	}
	return c, true
}

// enter is the choice to go into a user namespace first.
func enter(f probe.Facts) (Choice, bool) {
	tried := f.Userns != unix.ECANCELED
	if Entered() || f.IDs.Missing != "" || tried && (f.Userns != 0 || f.UsernsMount != 0) {
		return Choice{}, false
	}
	how := "newuidmap"
	if f.IDs.Own {
		how = "its own CAP_SETUID"
	}
	return Choice{Rung: RungUserns, Enter: true, Why: "a user namespace with a range of ids, mapped by " + how}, true
}

func privilegedWhy(f probe.Facts) string {
	what, errno := "mount", f.Mount
	if f.Namespaces != 0 {
		what, errno = "unshare namespaces", f.Namespaces
	}
	return fmt.Sprintf("  privileged: %s: %v; it needs CAP_SYS_ADMIN: docker run --privileged, or Kubernetes securityContext.privileged: true", what, errno)
}

func usernsWhy(f probe.Facts) string {
	var why string
	switch {
	case Entered():
		why = fmt.Sprintf("inside the user namespace, mount: %v", f.Mount)
	case f.Userns == unix.ECANCELED:
		why = "not tried"
	case f.Userns != 0:
		why = fmt.Sprintf("unshare(CLONE_NEWUSER): %v; allow it: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or Kubernetes hostUsers: false with an unconfined seccomp profile", f.Userns)
	case f.UsernsMount != 0:
		why = fmt.Sprintf("mount in a user namespace: %v; an AppArmor or SELinux policy may forbid it: docker run --security-opt apparmor=unconfined", f.UsernsMount)
	}
	if len(f.Settings) > 0 {
		why += "; kernel settings against it: " + strings.Join(f.Settings, ", ")
	}
	if f.IDs.Missing != "" {
		why += "; a range of ids: " + f.IDs.Missing
	}
	return "  userns: " + strings.TrimPrefix(why, "; ")
}
