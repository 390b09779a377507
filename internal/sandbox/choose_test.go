package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sys"
)

func TestChooseTakesTheStrongestRungThatFits(t *testing.T) {
	if Entered() {
		t.Skip("needs a process that did not enter a user namespace")
	}
	refused := func(call string, errno unix.Errno) probe.Trial {
		return probe.Trial{Refused: &probe.Refusal{What: "a step", Call: call, Errno: errno}}
	}
	admin, err := sys.ParseCap("SYS_ADMIN")
	if err != nil {
		t.Fatal(err)
	}
	admin |= Lacks(0)
	chown, err := sys.ParseCap("CHOWN")
	if err != nil {
		t.Fatal(err)
	}
	root := probe.Facts{CapEff: admin}
	halfRoot := probe.Facts{CapEff: admin &^ chown}
	halfRootFiltered := halfRoot
	halfRootFiltered.Userns = refused("unshare", unix.EPERM)
	remapped := probe.Facts{InUserns: true, CapEff: admin, Trial: probe.Trial{Mknod: unix.EPERM}}
	masked := probe.Facts{InUserns: true, CapEff: admin, Trial: probe.Trial{Mknod: unix.EPERM, FreshProc: unix.EPERM}}
	noNodes := probe.Facts{CapEff: admin, Trial: probe.Trial{Mknod: unix.EPERM}}
	user := probe.Facts{Trial: refused("clone", unix.EPERM), IDs: probe.IDRange{Newuidmap: "/usr/bin/newuidmap"}}
	bare := user
	bare.IDs.Missing = "install the package uidmap"
	plain := probe.Facts{Trial: refused("clone", unix.EPERM), Userns: refused("unshare", unix.EPERM), Settings: []string{"user.max_user_namespaces=0"}, IDs: probe.IDRange{Own: true}}
	filtered := probe.Facts{CapEff: admin, Trial: refused("pivot_root", unix.EPERM), Userns: refused("pivot_root", unix.EPERM), IDs: probe.IDRange{Own: true}}
	halfFiltered := filtered
	halfFiltered.Userns = probe.Trial{}
	denied := filtered
	denied.Trial = refused("mount", unix.EACCES)
	// With a sentry, tried or not.
	with := func(f probe.Facts, s probe.SentryTrial) probe.Facts { f.Sentry = &s; return f }
	systrap := probe.SentryTrial{Platform: "systrap"}
	broken := probe.SentryTrial{Err: errors.New("systrap: no ptrace; ptrace: none")}
	oneID := remapped
	oneID.OneID, oneID.IDs.Missing = true, "one id only"
	unmerged := func(f probe.Facts) probe.Facts { f.Unmerged = "the store lies on an overlay"; return f }
	caged := plain
	caged.Chroot.Refused = unix.EPERM
	for _, c := range []struct {
		name      string
		f         probe.Facts
		isolation string
		rung      Rung
		enter     bool
		shared    bool
		lacks     sys.CapSet
		instead   Rung
		class     error
		text      string
	}{
		{name: "root", f: root, rung: RungPrivileged},
		{name: "root, foreign word", f: root, isolation: "oci", rung: RungPrivileged},
		{name: "root, forced down", f: root, isolation: "userns", rung: RungUserns, enter: true},
		{name: "root without a capability", f: halfRoot, rung: RungUserns, enter: true},
		{name: "root without a capability, forced up", f: halfRoot, isolation: "privileged", rung: RungPrivileged, lacks: chown},
		{name: "root without a capability and user namespaces", f: halfRootFiltered, rung: RungPrivileged, lacks: chown},
		{name: "remapped", f: remapped, rung: RungUserns},
		{name: "masked", f: masked, isolation: "userns", rung: RungUserns, shared: true},
		{name: "user", f: user, rung: RungUserns, enter: true},
		{name: "user, forced up", f: user, isolation: "privileged", class: errdefs.ErrFailedPrecondition, text: "CAP_SYS_ADMIN"},
		{name: "user without a range", f: bare, class: errdefs.ErrFailedPrecondition, text: "install the package uidmap"},
		{name: "plain docker run", f: plain, class: errdefs.ErrFailedPrecondition, text: "seccomp=unconfined"},
		{name: "plain docker run", f: plain, isolation: "userns", class: errdefs.ErrFailedPrecondition, text: "user.max_user_namespaces=0"},
		{name: "no device nodes", f: noNodes, rung: RungUserns},
		{name: "only pivot_root forbidden", f: filtered, class: errdefs.ErrFailedPrecondition, text: "privileged: a step: pivot_root: operation not permitted; the outer container's seccomp profile forbids pivot_root"},
		{name: "pivot_root forbidden by AppArmor", isolation: "privileged", class: errdefs.ErrFailedPrecondition, text: "pivot_root: permission denied; it is forbidden by the AppArmor profile docker-default",
			f: probe.Facts{CapEff: admin, Trial: refused("pivot_root", unix.EACCES), Security: probe.Security{AppArmor: "docker-default", Seccomp: true}}},
		{name: "only pivot_root forbidden", f: filtered, isolation: "userns", class: errdefs.ErrFailedPrecondition, text: "seccompProfile: Unconfined"},
		{name: "forbidden outside of user namespaces", f: halfFiltered, rung: RungUserns, enter: true},
		{name: "denied by a policy", f: denied, isolation: "privileged", class: errdefs.ErrFailedPrecondition, text: "apparmor=unconfined"},
		{name: "not built", f: root, isolation: "sentry", class: errdefs.ErrNotImplemented, text: "no such rung yet"},
		{name: "plain docker run", f: with(plain, systrap), rung: RungSentry},
		{name: "plain docker run, not tried", f: with(plain, probe.SentryTrial{}), rung: RungSentry},
		{name: "plain docker run, broken", f: with(plain, broken), class: errdefs.ErrFailedPrecondition, text: "sentry: systrap: no ptrace"},
		{name: "plain docker run, forced up", f: with(plain, systrap), isolation: "userns", class: errdefs.ErrFailedPrecondition, text: "user.max_user_namespaces=0"},
		{name: "user without a range", f: with(bare, systrap), rung: RungSentry},
		{name: "user with a range", f: with(user, systrap), rung: RungUserns, enter: true},
		{name: "one id", f: with(oneID, systrap), rung: RungSentry},
		{name: "one id, no sentry", f: oneID, rung: RungUserns},
		{name: "one id, broken", f: with(oneID, broken), rung: RungUserns},
		{name: "root", f: with(root, systrap), rung: RungPrivileged},
		{name: "root, forced down", f: with(root, systrap), isolation: "sentry", rung: RungSentry},
		{name: "root, forced down, broken", f: with(root, broken), isolation: "sentry", class: errdefs.ErrFailedPrecondition, text: "systrap: no ptrace"},
		{name: "root, nothing merges", f: unmerged(with(root, systrap)), rung: RungSentry, instead: RungPrivileged},
		{name: "user with a range, nothing merges", f: unmerged(with(user, probe.SentryTrial{})), rung: RungSentry, instead: RungUserns},
		{name: "root, nothing merges, forced up", f: unmerged(with(root, systrap)), isolation: "privileged", rung: RungPrivileged},
		{name: "root, nothing merges, broken", f: unmerged(with(root, broken)), rung: RungPrivileged},
		{name: "root, nothing merges, no sentry", f: unmerged(root), rung: RungPrivileged},
		{name: "chroot", f: plain, isolation: "chroot", rung: RungChroot},
		{name: "chroot refused", f: caged, isolation: "chroot", class: errdefs.ErrFailedPrecondition, text: "cap-add SYS_CHROOT"},
		{name: "foreign words", f: with(plain, systrap), isolation: "rootless", rung: RungSentry},
		{name: "foreign words", f: root, isolation: "hyperv", rung: RungPrivileged},
		{name: "foreign words", f: root, isolation: "process", rung: RungPrivileged},
		{name: "nonsense", f: root, isolation: "x", class: errdefs.ErrInvalidArgument, text: "unknown, want auto, privileged, userns, sentry or chroot"},
	} {
		got, err := Choose(c.f, c.isolation)
		if c.class != nil {
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || got.Rung != c.rung || got.Enter != c.enter || got.SharePids != c.shared || got.Lacks != c.lacks || got.Instead != c.instead ||
			!strings.Contains(got.Why, c.f.Unmerged) && c.instead != "" || got.Why == "" {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestRungsAreCalledWhatTheyGive(t *testing.T) {
	owner, err := sys.ParseCaps([]string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"})
	if err != nil {
		t.Fatal(err)
	}
	refused := probe.Trial{Refused: &probe.Refusal{What: "a step", Call: "clone", Errno: unix.EPERM}}
	f := probe.Facts{Trial: refused, Userns: refused, Sentry: &probe.SentryTrial{}}
	for _, c := range []struct {
		uid       int
		caps      sys.CapSet
		platform  string
		isolation string
		want      string
	}{
		{0, owner, "systrap", "", "default (sentry, systrap)"},
		{0, owner, "", "", "default (sentry)"},
		{0, 0, "ptrace", "", "restricted (sentry, ptrace)"},
		{1000, owner, "systrap", "", "restricted (sentry, systrap)"},
		{0, owner, "systrap", "chroot", "chroot"},
	} {
		f.UID, f.CapEff, f.Sentry.Platform = c.uid, c.caps, c.platform
		got, err := Choose(f, c.isolation)
		if err != nil || got.String() != c.want {
			t.Errorf("%q, want %q, %v", got, c.want, err)
		}
	}
}

// What does not work on a rung is said before somebody needs it.
func TestChoiceSaysWhatTheRungCannotDo(t *testing.T) {
	refused := probe.Trial{Refused: &probe.Refusal{What: "a step", Call: "clone", Errno: unix.EPERM}}
	for rung, c := range map[Rung]struct {
		f    probe.Facts
		want []string
	}{
		RungPrivileged: {probe.Facts{}, nil},
		RungUserns:     {probe.Facts{InUserns: true}, []string{"device nodes"}},
		RungSentry:     {probe.Facts{Trial: refused, Sentry: &probe.SentryTrial{}}, []string{"other architectures"}},
		RungChroot:     {probe.Facts{Chroot: probe.Chroot{Devices: unix.EPERM}}, []string{"trusted", "no /proc", "mknod"}},
	} {
		got, err := Choose(c.f, string(rung))
		if err != nil || len(got.Cannot) != len(c.want) {
			t.Errorf("%s: %q, %v", rung, got.Cannot, err)
			continue
		}
		for i, w := range c.want {
			if !strings.Contains(got.Cannot[i], w) {
				t.Errorf("%s: %q does not say %q", rung, got.Cannot[i], w)
			}
		}
	}
}

// The profile that refuses is named where the capabilities have no quarrel with the call.
func TestChooseNamesTheProfileThatRefuses(t *testing.T) {
	if Entered() {
		t.Skip("needs a process that did not enter a user namespace")
	}
	denied := probe.Trial{Refused: &probe.Refusal{What: "make mounts private", Call: "mount", Errno: unix.EACCES}}
	noUserns := probe.Trial{Refused: &probe.Refusal{What: "user namespace", Call: "unshare", Errno: unix.EACCES}}
	const admin = sys.CapSet(1 << unix.CAP_SYS_ADMIN)
	for _, c := range []struct {
		f    probe.Facts
		want []string
	}{
		{probe.Facts{CapEff: admin, Trial: denied, Userns: denied, Security: probe.Security{AppArmor: "docker-default"}},
			[]string{"privileged: make mounts private: mount: permission denied; it is forbidden by the AppArmor profile docker-default: docker run --security-opt apparmor=unconfined",
				"userns: inside a user namespace: make mounts private: mount: permission denied; it is forbidden by the AppArmor profile docker-default"}},
		{probe.Facts{Trial: denied, Userns: noUserns, Security: probe.Security{SELinux: "container_t"}, Sentry: &probe.SentryTrial{Err: errors.New("systrap: no ptrace; ptrace: none")}},
			[]string{"sentry: systrap: no ptrace; ptrace: none; if it is ptrace that was refused, it is forbidden by the SELinux policy for container_t", "it needs CAP_SYS_ADMIN", "unshare(CLONE_NEWUSER): permission denied; it is forbidden by the SELinux policy for container_t: docker run --security-opt label=disable"}},
	} {
		_, err := Choose(c.f, "")
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v\ndoes not say %q", err, w)
			}
		}
	}
}

func TestExplanationIsForRefusalsOfModules(t *testing.T) {
	confined := probe.Security{AppArmor: "docker-default", Seccomp: true}
	mount := fmt.Errorf("sandbox x: attach /y: move_mount: %w", unix.EACCES)
	for _, c := range []struct {
		s    probe.Security
		err  error
		want string
	}{
		{confined, mount, "sandbox x: attach /y: move_mount: permission denied; if no permission is in the way, it is forbidden by the AppArmor profile docker-default"},
		{probe.Security{SELinux: "container_t"}, mount, "the SELinux policy for container_t: docker run --security-opt label=disable"},
		{probe.Security{Seccomp: true}, mount, "permission denied"},
		{confined, fmt.Errorf("mount: %w", unix.ENOSPC), "no space left on device"},
		{confined, &ExecError{Program: "sh", Code: 126, Err: unix.EACCES}, "exec: \"sh\": permission denied"},
	} {
		got := Explain(c.s, c.err)
		if !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) || !strings.Contains(c.want, "docker") && got.Error() != c.err.Error() {
			t.Errorf("%v, want %q", got, c.want)
		}
	}
	if Explain(confined, nil) != nil {
		t.Error("success is explained")
	}
}

func TestHomeIsTheFirstLineOfTheUser(t *testing.T) {
	const passwd = "a:x:1\n:::\nb:x:7:7::/b:/bin/sh\nc:x:7:7::/c:\nd:x:8:8:::\n"
	for uid, want := range map[uint32]string{7: "/b", 8: "/", 9: "/"} {
		if got := HomeOf(strings.NewReader(passwd), uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
}

func FuzzHome(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n")
	f.Fuzz(func(t *testing.T, s string) {
		if h := HomeOf(strings.NewReader(s), 0); h == "" || len(h) > maxHome || strings.ContainsRune(h, 0) {
			t.Errorf("home is %q", h)
		}
	})
}
