package sandbox

import (
	"errors"
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
	for _, c := range []struct {
		name      string
		f         probe.Facts
		isolation string
		rung      Rung
		enter     bool
		shared    bool
		lacks     sys.CapSet
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
		{name: "only pivot_root forbidden", f: filtered, isolation: "userns", class: errdefs.ErrFailedPrecondition, text: "seccompProfile: Unconfined"},
		{name: "forbidden outside of user namespaces", f: halfFiltered, rung: RungUserns, enter: true},
		{name: "denied by a policy", f: denied, isolation: "privileged", class: errdefs.ErrFailedPrecondition, text: "apparmor=unconfined"},
		{name: "not built", f: root, isolation: "sentry", class: errdefs.ErrNotImplemented, text: "no such rung yet"},
		{name: "nonsense", f: root, isolation: "x", class: errdefs.ErrInvalidArgument, text: "unknown, want auto, privileged or userns"},
	} {
		got, err := Choose(c.f, c.isolation)
		if c.class != nil {
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || got.Rung != c.rung || got.Enter != c.enter || got.SharePids != c.shared || got.Lacks != c.lacks || got.Why == "" {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestHomeIsTheFirstLineOfTheUser(t *testing.T) {
	const passwd = "a:x:1\n:::\nb:x:7:7::/b:/bin/sh\nc:x:7:7::/c:\nd:x:8:8:::\n"
	for uid, want := range map[uint32]string{7: "/b", 8: "/", 9: "/"} {
		if got := homeOf(strings.NewReader(passwd), uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
}

func FuzzHome(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n")
	f.Fuzz(func(t *testing.T, s string) {
		if h := homeOf(strings.NewReader(s), 0); h == "" || len(h) > maxHome || strings.ContainsRune(h, 0) {
			t.Errorf("home is %q", h)
		}
	})
}
