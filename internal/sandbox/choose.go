package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sys"
)

// A Rung is one strength of isolation.
type Rung string

// Rungs, best first. RungChroot is never chosen, only forced.
const (
	RungPrivileged Rung = "privileged"
	RungUserns     Rung = "userns"
	RungSentry     Rung = "sentry"
	RungChroot     Rung = "chroot"
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
	// Platform is how the sentry catches system calls, "systrap" or "ptrace"; "" on
	// another rung, and until somebody has tried.
	Platform string
	// Owns says that files on disk can be given to anybody, which on the weak rungs
	// is how "default" differs from "restricted".
	Owns bool
	// Devices says that device nodes can be made and opened on disk.
	Devices bool
	// Security is what confines den, and whatever it starts with it.
	Security probe.Security
	// Instead is the stronger rung that would work here, but that nothing merges layers for;
	// "" if this is the strongest.
	Instead Rung
	// Why is one sentence for people.
	Why string
	// Cannot are sentences about what does not work on this rung and would on a better one.
	Cannot []string
}

// Name is what people read: privileged, userns, default, restricted or chroot.
func (c Choice) Name() string {
	switch {
	case c.Rung != RungSentry:
		return string(c.Rung)
	case c.Owns:
		return "default"
	}
	return "restricted"
}

// String is the name, with how it is done where there is more than one way.
func (c Choice) String() string {
	switch {
	case c.Rung != RungSentry:
		return c.Name()
	case c.Platform == "":
		return c.Name() + " (sentry)"
	}
	return c.Name() + " (sentry, " + c.Platform + ")"
}

// Auto reports whether isolation leaves the choice to den: unset, "auto", or what
// other tools call their kinds.
func Auto(isolation string) bool {
	switch isolation {
	case "", "auto", "default", "oci", "rootless", "hyperv", "process":
		return true
	}
	return false
}

// Choose picks the rung for facts. isolation is what the user forced: a rung, or a
// word for which Auto is true. The error, of class ErrFailedPrecondition, lists what
// was tried and what to install or set. A sentry that nobody has tried yet is taken to
// run: who is about to start one tries.
func Choose(f probe.Facts, isolation string) (Choice, error) {
	if Auto(isolation) {
		return best(f)
	}
	switch Rung(isolation) {
	case RungPrivileged:
		if c, ok := here(f); ok {
			if c.Rung != RungPrivileged {
				c.Why = "privileged as far as this process goes: device nodes cannot be made"
			}
			return c.limited(f), nil
		}
	case RungUserns:
		c, ok := here(f)
		if ok && c.Rung == RungUserns {
			return c.limited(f), nil
		}
		if c, ok := enter(f); ok {
			return c.limited(f), nil
		}
	case RungSentry:
		if c, ok := inSentry(f); ok {
			c.Why = "asked for: each step runs on a kernel of its own, in user space"
			return c.limited(f), nil
		}
	case RungChroot:
		if c, ok := inChroot(f); ok {
			return c.limited(f), nil
		}
	default:
		return Choice{}, fmt.Errorf("isolation %.40q: unknown, want auto, privileged, userns, sentry or chroot%w", isolation, hidden{errdefs.ErrInvalidArgument})
	}
	return Choice{}, fmt.Errorf("isolation %s:%s%w", isolation, separate(WhyNot(f, Rung(isolation))), hidden{class(f, Rung(isolation))})
}

// separate puts a reason after a colon: a long one on a line of its own.
func separate(why string) string {
	if strings.ContainsAny(why, ":;") {
		return "\n  " + why
	}
	return " " + why
}

// class is that of the error for a rung that does not work.
func class(f probe.Facts, r Rung) error {
	if r == RungSentry && (f.Sentry == nil || errors.Is(f.Sentry.Err, errdefs.ErrNotImplemented)) {
		return errdefs.ErrNotImplemented
	}
	return errdefs.ErrFailedPrecondition
}

// best is the strongest rung, unless nothing merges layers on disk for that: then every
// step would copy its whole root file system, which costs more than a kernel in user space does.
func best(f probe.Facts) (Choice, error) {
	c, err := strongest(f)
	if err != nil || c.Rung == RungSentry || f.Unmerged == "" {
		return c, err
	}
	s, ok := inSentry(f)
	if !ok {
		return c, nil
	}
	s.Instead = c.Rung
	s.Why = "each step runs on a kernel of its own, in user space, which merges layers where nothing else does: " + f.Unmerged
	return s.limited(f), nil
}

// strongest is the strongest rung that is whole; failing that one that lacks something.
func strongest(f probe.Facts) (Choice, error) {
	c, ok := here(f)
	if ok && c.Lacks == 0 && !f.OneID {
		return c.limited(f), nil
	}
	if c, ok := enter(f); ok { // in there it has all of them
		return c.limited(f), nil
	}
	if ok && !f.OneID {
		return c.limited(f), nil
	}
	if s, ok := inSentry(f); ok {
		return s.limited(f), nil
	}
	if ok {
		return c.limited(f), nil
	}
	return Choice{}, fmt.Errorf("isolation: no rung fits this outer container:\n  privileged: %s\n  userns: %s\n  sentry: %s%w",
		WhyNot(f, RungPrivileged), WhyNot(f, RungUserns), WhyNot(f, RungSentry), hidden{errdefs.ErrFailedPrecondition})
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

// inSentry is the choice of a kernel in user space.
func inSentry(f probe.Facts) (Choice, bool) {
	c := Choice{Rung: RungSentry, Why: "each step runs on a kernel of its own, in user space: the outer container allows no namespaces"}
	if f.OneID || f.Refused == nil || f.Userns.Refused == nil {
		c.Why = "each step runs on a kernel of its own, in user space: the outer container allows namespaces, but no range of ids"
	}
	if f.Sentry == nil || f.Sentry.Err != nil {
		return c, false
	}
	c.Platform = f.Sentry.Platform
	return c, true
}

// inChroot is the choice of next to no isolation, for steps that are trusted.
func inChroot(f probe.Facts) (Choice, bool) {
	return Choice{Rung: RungChroot, Why: "asked for: steps share everything with den but the root directory"},
		f.Chroot.Refused == 0
}

// limited adds what does not work on the rung, and what can be done on disk.
func (c Choice) limited(f probe.Facts) Choice {
	c.Owns = OwnsTrees(f)
	c.Devices = f.Chroot.Devices == 0
	c.Security = f.Security
	c.Cannot = cannot(c, f)
	return c
}

// OwnsTrees says that the process can make trees with all their owners and modes
// without a user namespace: root with capabilities that Docker leaves to every
// container. Device nodes are recorded where they cannot be made, and file
// capabilities that cannot be set are an error.
func OwnsTrees(f probe.Facts) bool {
	const needed = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID
	return f.UID == 0 && f.CapEff&needed == needed
}

// cannot lists what the rung does not give, before work is lost by it.
func cannot(c Choice, f probe.Facts) []string {
	var s []string
	switch c.Rung {
	case RungUserns:
		s = append(s, "steps cannot make device nodes; those of images are kept, and cannot be opened")
	case RungSentry:
		s = append(s, "programs for other architectures do not run: the sentry knows no emulators")
	case RungChroot:
		s = append(s, "steps see den's processes, network, users and environment of the outer container, and can signal and read what its user can: for trusted Dockerfiles only",
			"steps have no /proc and no /sys; what would be mounted is copied in, and back where it may be written; there is no network none and no read-only root")
		if !c.Devices {
			s = append(s, "/dev has no devices of its own: mknod is not allowed")
		}
	}
	return s
}
