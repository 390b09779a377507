package daemon

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sys"
)

// A driver that is refused makes the sentry serve, unless the user wants something else.
func TestSentryServesWhereOverlayIsRefused(t *testing.T) {
	if sandbox.Entered() {
		t.Skip("needs a process that did not enter a user namespace")
	}
	t.Setenv("PATH", t.TempDir()) // no fuse-overlayfs
	t.Setenv("DEN_ISOLATION", "")
	t.Setenv("DEN_STORAGE_DRIVER", "")
	root := probe.Facts{CapEff: sandbox.Lacks(0) | 1<<unix.CAP_SYS_ADMIN, Reflink: unix.EOPNOTSUPP, Sentry: &probe.SentryTrial{}}
	root.Overlay, root.Userns.Overlay = unix.EINVAL, unix.EINVAL
	user := root
	user.UID, user.CapEff, user.IDs = 1000, 0, probe.IDRange{Newuidmap: "/usr/bin/newuidmap"}
	user.Refused = &probe.Refusal{What: "create namespaces", Call: "clone", Errno: unix.EPERM}
	onOverlay, broken, clones, full, merged := root, root, root, root, root
	onOverlay.FSType = "overlay"
	broken.Sentry = &probe.SentryTrial{Err: errors.New("no ptrace")}
	clones.Reflink = 0
	full.Untried = "no space left on device"
	merged.Overlay = 0
	inner := user // only in the user namespace does an overlay work
	inner.Userns.Overlay = 0
	for _, c := range []struct {
		name     string
		facts    probe.Facts
		o        Options
		rung     sandbox.Rung
		unmerged string
	}{
		{"refused", root, Options{}, sandbox.RungSentry, "invalid argument"},
		{"on an overlay", onOverlay, Options{}, sandbox.RungSentry, "-v den:/var/lib/den"},
		{"a user's", user, Options{}, sandbox.RungSentry, "invalid argument"},
		{"a user's, in the namespace", inner, Options{}, sandbox.RungUserns, ""},
		{"works", merged, Options{}, sandbox.RungPrivileged, ""},
		{"clones", clones, Options{}, sandbox.RungPrivileged, ""},
		{"full disk", full, Options{}, sandbox.RungPrivileged, ""},
		{"copies are wanted", root, Options{StorageDriver: "copy"}, sandbox.RungPrivileged, ""},
		{"others' word", root, Options{StorageDriver: "overlay2"}, sandbox.RungSentry, "invalid argument"},
		{"rung is wanted", root, Options{Isolation: "privileged"}, sandbox.RungPrivileged, "invalid argument"},
		{"no sentry", broken, Options{}, sandbox.RungPrivileged, "invalid argument"},
	} {
		s := Surroundings{Facts: c.facts}
		s.choose(c.o)
		if s.Err != nil || s.Choice.Rung != c.rung || (s.Facts.Unmerged == "") != (c.unmerged == "") || !strings.Contains(s.Facts.Unmerged, c.unmerged) {
			t.Errorf("%s: %v %+v: %q", c.name, s.Err, s.Choice, s.Facts.Unmerged)
		}
		if c.rung == sandbox.RungSentry {
			continue
		}
		// Full copies are only for who asks, or where nothing else is left.
		f := storageFacts(s.Facts, s.Choice)
		if want := c.o.Isolation != ""; f.Sentry != want {
			t.Errorf("%s: a sentry could serve: %t", c.name, f.Sentry)
		}
	}
}

func TestShortcutIsForFileSystemsThatTakeOverlays(t *testing.T) {
	dir := t.TempDir()
	fs, err := sys.FSName(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := probe.Gather(t.Context(), dir)
	if got, want := takesOverlays(dir), f.Refused == nil && f.Overlay == 0 && (fs == "ext4" || fs == "xfs" || fs == "btrfs"); got != want {
		t.Errorf("%s: %t, and an overlay there: %v, %v", fs, got, f.Refused, f.Overlay)
	}
	if takesOverlays("/proc") {
		t.Error("an overlay in /proc")
	}
	for _, c := range []struct {
		o    Options
		want bool
	}{
		{Options{StoreRoot: "/proc/den"}, false},
		{Options{StoreRoot: "/proc/den", Isolation: "privileged"}, true},
		{Options{StoreRoot: "/proc/den", Isolation: "userns"}, false},
		{Options{StoreRoot: "/proc/den", StorageDriver: "copy"}, true},
	} {
		if got := c.o.strong(); got != c.want {
			t.Errorf("%+v: %t", c.o, got)
		}
	}
}
