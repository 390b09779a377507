package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/probe"
)

// WhyNot says why a rung does not work here, and what would help; "" if it does.
func WhyNot(f probe.Facts, r Rung) string {
	switch r {
	case RungPrivileged:
		if c, ok := here(f); ok && c.Rung == RungPrivileged && c.Lacks == 0 {
			return ""
		}
		return privilegedWhy(f)
	case RungUserns:
		if _, ok := enter(f); ok {
			return ""
		}
		if c, ok := here(f); ok && c.Rung == RungUserns && !f.OneID {
			return ""
		}
		return usernsWhy(f)
	case RungSentry:
		switch {
		case f.Sentry == nil:
			return "this build of den has no such rung yet"
		case f.Sentry.Err != nil:
			return explainSentry(f.Security, f.Sentry.Err)
		}
	case RungChroot:
		if _, ok := inChroot(f); !ok {
			return fmt.Sprintf("chroot: %v; it needs CAP_SYS_CHROOT: docker run --user 0 --cap-add SYS_CHROOT", f.Chroot.Refused)
		}
	}
	return ""
}

func privilegedWhy(f probe.Facts) string {
	if f.Refused == nil {
		switch {
		case f.InUserns:
			return "this process is inside a user namespace: docker run --privileged, without a user namespace around it"
		case f.Mknod != 0:
			return fmt.Sprintf("device nodes: mknod: %v; it needs CAP_MKNOD and a cgroup that allows devices: docker run --privileged", f.Mknod)
		}
		return "the outer container does not give " + strings.Join(Lacks(f.CapEff).Names(), ", ") + ": docker run --privileged"
	}
	why := f.Refused.Error()
	switch {
	case f.Refused.Call == "setgroups" && f.CapEff.Has(unix.CAP_SETGID):
		return why + "; this user namespace was made with setgroups denied, as for a single id"
	case !f.CapEff.Has(unix.CAP_SYS_ADMIN):
		return why + "; it needs CAP_SYS_ADMIN: docker run --privileged, or Kubernetes securityContext.privileged: true"
	}
	if advice := remedy(f.Refused); advice != "" {
		return why + "; " + advice
	}
	return why + "; " + policy(f, f.Refused.Errno, "though CAP_SYS_ADMIN is there") + ", or --privileged"
}

// explainSentry is Explain for the error of a process that has ended, which carries no
// errno: what a module can refuse a sentry is ptrace.
func explainSentry(s probe.Security, err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) || s.AppArmor == "" && s.SELinux == "" {
		return Explain(s, err).Error()
	}
	return fmt.Sprintf("%v; if it is ptrace that was refused, %s", err, s.Explain(unix.EACCES))
}

// Explain adds to an error that a security module may be behind its name and the
// setting that lifts it. An ExecError is about the payload's program, and no such error.
func Explain(s probe.Security, err error) error {
	var exec *ExecError
	var errno unix.Errno
	if s.AppArmor == "" && s.SELinux == "" || errors.As(err, &exec) || !errors.As(err, &errno) {
		return err
	}
	if by := s.Explain(errno); by != "" {
		return fmt.Errorf("%w; if no permission is in the way, %s", err, by)
	}
	return err
}

// policy says whose rule forbids a call that the capabilities allow.
func policy(f probe.Facts, errno unix.Errno, though string) string {
	if by := f.Security.Explain(errno); by != "" {
		return by
	}
	if though != "" {
		though = " " + though
	}
	return "a seccomp, AppArmor or SELinux policy forbids it" + though + ": docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
}

func usernsWhy(f probe.Facts) string {
	var why string
	refused := f.Userns.Refused
	switch {
	case Entered():
		why = fmt.Sprintf("inside the user namespace: %v", f.Refused)
	case refused == nil:
	case refused.Call == "unshare":
		why = fmt.Sprintf("unshare(CLONE_NEWUSER): %v; %s", refused.Errno, unshareAdvice(f, refused.Errno))
	default:
		why = fmt.Sprintf("inside a user namespace: %v", refused)
		advice := remedy(refused)
		if advice == "" && refused.Call != "" {
			advice = policy(f, refused.Errno, "")
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
	return strings.TrimPrefix(why, "; ")
}

// unshareAdvice is what allows user namespaces. ENOSPC and EUSERS are the kernel's
// own limits, which the settings say.
func unshareAdvice(f probe.Facts, errno unix.Errno) string {
	const allow = "allow it: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or Kubernetes hostUsers: false with an unconfined seccomp profile"
	if by := f.Security.Explain(errno); by != "" && (f.Security.AppArmor != "" || f.Security.SELinux != "") {
		return by
	}
	return allow
}

// remedy is what to set so that one particular call works; "" where nothing in
// particular is known.
func remedy(r *probe.Refusal) string {
	if r.Errno == unix.EACCES {
		return "" // a security module's, which policy names
	}
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
