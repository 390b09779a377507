package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/registry"
	"den/internal/sandbox"
	"den/internal/store"
	"den/internal/sys"
)

// good is a machine on which nothing is short.
func good() Input {
	return Input{
		Version: "1", Now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC),
		Facts:   probe.Facts{CapEff: sandbox.Lacks(0) | 1<<unix.CAP_SYS_ADMIN, FSType: "ext4", Cgroup: 2},
		Storage: Chosen{Name: "overlay", Why: "overlay: fast"}, Network: Chosen{Name: "bridge", Why: "of the kernel"}, Serve: Serve{Socket: "/var/run/docker.sock"},
		Store: Store{Root: "/var/lib/den", Look: store.Look{Exists: true, Shared: true},
			Disk: probe.Disk{Dir: "/var/lib/den", FSType: "ext4", FreeBytes: 1 << 40, SizeBytes: 1 << 41, FreeInodes: 1 << 30, Inodes: 1 << 31}},
	}
}

// examine chooses as den does, from facts that a test has changed.
func examine(in Input) Report {
	in.Choice, in.ChoiceErr = sandbox.Choose(in.Facts, in.Isolation)
	return Examine(in)
}

func (r Report) check(t *testing.T, id string) Check {
	t.Helper()
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.ID == id })
	if i < 0 {
		t.Fatalf("no check %s in %+v", id, r.Checks)
	}
	return r.Checks[i]
}

var filtered = probe.Trial{Refused: &probe.Refusal{What: "create namespaces", Call: "clone", Errno: unix.EPERM}, Overlay: unix.ECANCELED, FreshProc: unix.ECANCELED}

func noUserns() probe.Trial {
	t := filtered
	t.Refused = &probe.Refusal{What: "user namespace", Call: "unshare", Errno: unix.EPERM}
	return t
}

func TestWhatIsFitNeedsNothing(t *testing.T) {
	r := examine(good())
	if r.Verdict != Fit || r.Rung.Name != "privileged" || r.Rung.Better != "" {
		t.Errorf("%+v", r)
	}
	for _, c := range r.Checks {
		if c.Fix != nil || c.Status != OK && c.Area != areaOuter && c.ID != "registry" {
			t.Errorf("%+v", c)
		}
	}
}

// Each shortfall is found, and its line is there.
func TestShortfalls(t *testing.T) {
	if sandbox.Entered() {
		t.Skip("needs a process that did not enter a user namespace")
	}
	docker := sys.CapSet(0)
	for _, c := range []int{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETFCAP, unix.CAP_SETPCAP} {
		docker |= 1 << c
	}
	plain := func(in *Input) {
		in.Facts.CapEff, in.Facts.CapBnd, in.Facts.Trial, in.Facts.Userns = docker, docker, filtered, noUserns()
		in.Facts.IDs.Own = true
		in.Facts.Sentry = &probe.SentryTrial{Platform: "systrap"}
	}
	restricted := func(in *Input) {
		plain(in)
		in.Facts.UID, in.Facts.CapEff, in.Facts.CapBnd, in.Facts.NoNewPrivs = 1000, 0, 0, true
		in.Facts.IDs = probe.IDRange{Missing: "newuidmap is not in PATH"}
	}
	for _, c := range []struct {
		name    string
		change  func(*Input)
		id      string
		status  Status
		verdict Verdict
		text    string
		docker  string // "": no fix
	}{
		{"plain docker run", plain, "rung", Note, Fit, "default (sentry, systrap)", "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"},
		{"restricted", restricted, "rung", Note, Fit, "restricted (sentry, systrap)",
			"--user 0 --cap-add SETUID --cap-add SETGID --cap-add SETFCAP --security-opt seccomp=unconfined --security-opt apparmor=unconfined"},
		{"no sentry", func(in *Input) { plain(in); in.Facts.Sentry = nil }, "rung", Bad, Limited, "none: isolation: no rung fits", "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"},
		{"SELinux", func(in *Input) { plain(in); in.Facts.Security.SELinux = "container_t" }, "rung", Note, Fit, "default", "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt label=disable"},
		{"no range", func(in *Input) { restricted(in); in.Facts.Userns.Refused = nil; in.Facts.CapBnd = docker }, "rung", Note, Fit, "no range of ids", "--user 0"},
		{"one id", func(in *Input) {
			in.Facts.InUserns, in.Facts.OneID, in.Facts.IDs.Missing = true, true, "one id only"
			in.Facts.Sentry = &probe.SentryTrial{Platform: "ptrace"}
		}, "rung", Note, Fit, "(sentry, ptrace)", ""},
		{"nothing merges", func(in *Input) {
			in.Facts.Unmerged, in.Facts.FSType, in.Facts.Sentry = "the store lies on an overlay", "overlay", &probe.SentryTrial{Platform: "systrap"}
		}, "rung", Note, Fit, "which merges layers where nothing else does: the store lies on an overlay", "-v den:/var/lib/den"},
		{"plain docker run on a tmpfs before Linux 6.6", func(in *Input) { plain(in); in.Facts.FSType, in.Facts.Overlay = "tmpfs", unix.EOPNOTSUPP }, "rung", Note, Fit, "in place of the tmpfs", ""},
		{"namespaces not tried in time", func(in *Input) {
			plain(in)
			in.Facts.Userns.Refused = &probe.Refusal{What: "not tried to the end in time", Errno: unix.ETIMEDOUT, Unfinished: true}
		}, "rung", Note, Fit, "not tried to the end in time", ""},
		{"plain docker run on an overlay", func(in *Input) { plain(in); in.Facts.FSType = "overlay" }, "rung", Note, Fit, "default",
			"--security-opt seccomp=unconfined --security-opt apparmor=unconfined -v den:/var/lib/den"},
		{"restricted on an overlay", func(in *Input) {
			restricted(in)
			in.Facts.FSType, in.Store.Root, in.Store.OfRoot = "overlay", "/tmp/den-1000", "/var/lib/den"
		}, "rung", Note, Fit, "restricted",
			"--user 0 --cap-add SETUID --cap-add SETGID --cap-add SETFCAP --security-opt seccomp=unconfined --security-opt apparmor=unconfined -v den:/var/lib/den"},
		{"nothing merges elsewhere", func(in *Input) {
			in.Facts.Unmerged, in.Facts.Sentry = "operation not permitted", &probe.SentryTrial{Platform: "systrap"}
		}, "rung", Note, Fit, "default (sentry, systrap): ", ""},
		{"chroot", func(in *Input) { plain(in); in.Isolation = "chroot" }, "rung", Short, Limited, "trusted Dockerfiles only", ""},
		{"copies in a chroot", func(in *Input) { plain(in); in.Isolation, in.Storage.Name = "chroot", "copy" }, "storage", Note, Limited, "", ""},
		{"masked /proc", func(in *Input) { in.Facts.InUserns = true; in.Facts.FreshProc = unix.EPERM }, "rung.pids", Short, Limited, "signal each other", "--security-opt systempaths=unconfined"},
		{"lacks", func(in *Input) { in.Facts.CapEff &^= 1 << unix.CAP_CHOWN; in.Facts.Userns = noUserns() }, "rung.capabilities", Short, Limited, "CAP_CHOWN", "--cap-add CHOWN"},
		{"no cgroups", func(in *Input) { in.Facts.CgroupErr = "read-only" }, "rung.limits", Note, Fit, "not enforced: read-only", "--security-opt writable-cgroups=true"},
		{"copies", func(in *Input) { in.Storage.Name, in.Facts.FSType = "copy", "overlay" }, "storage", Short, Limited, "", "-v den:/var/lib/den"},
		{"forced driver", func(in *Input) { in.Storage = Chosen{Name: "none", Why: "fuse-overlayfs: it was asked for"} }, "storage", Bad, Limited, "it was asked for", ""},
		{"copies elsewhere", func(in *Input) { in.Storage.Name = "copy" }, "storage", Short, Limited, "", ""},
		{"own file system", func(in *Input) { in.Store.Disk.FSType = "overlay"; in.Facts.UID = 1000 }, "store.place", Short, Limited, "private to it and goes with it", "--tmpfs /var/lib/den:exec,mode=1777"},
		{"read-only", func(in *Input) { in.Store.Err = errors.New("no store can be made") }, "store.place", Bad, Unfit, "no store can be made", "-v den:/var/lib/den"},
		{"read-only for SELinux", func(in *Input) { in.Store.Err, in.Facts.Security.SELinux = unix.EACCES, "container_t" }, "store.place", Bad, Unfit, "a label that container_t may write: -v DIR:/var/lib/den:Z", "-v den:/var/lib/den"},
		{"busy", func(in *Input) { in.Store.Slow = "it did not open within 1 s" }, "store.place", Note, Fit, "did not open within", ""},
		{"sentry not tried in time", func(in *Input) { plain(in); in.Facts.Sentry.Platform = "" }, "outer.sentry", Note, Fit, "not tried to the end", ""},
		{"full", func(in *Input) { in.Store.Disk.FreeBytes = 5 }, "store.space", Bad, Unfit, "5B free", ""},
		{"nearly full", func(in *Input) { in.Store.Disk.FreeBytes = 1 << 30 }, "store.space", Short, Limited, "1GiB free", ""},
		{"small tmpfs", func(in *Input) { in.Store.Disk.FSType = "tmpfs"; in.Store.Disk.FreeBytes = 64 << 20 }, "store.space", Short, Limited, "the cap of the tmpfs", "--tmpfs /var/lib/den:exec,mode=1777,size=8g"},
		{"tmpfs beyond memory", func(in *Input) {
			in.Store.Disk.FSType, in.Limits.MemoryBytes, in.Limits.MemoryUsedBytes = "tmpfs", 2<<30, 1<<30
		}, "store.space", Short, Limited, "may have 2GiB", "--tmpfs /var/lib/den:exec,mode=1777,size=8g --memory 10g"},
		{"few inodes", func(in *Input) { in.Store.Disk.FreeInodes = 5000 }, "store.inodes", Short, Limited, "5000 files", ""},
		{"no inodes", func(in *Input) { in.Store.Disk.FreeInodes = 0 }, "store.inodes", Bad, Unfit, "0 files", ""},
		{"noexec", func(in *Input) { in.Store.Disk.NoExec, in.Store.Disk.FSType = true, "tmpfs" }, "store.exec", Short, Limited, "noexec", "--tmpfs /var/lib/den:exec,mode=1777"},
		{"noexec in the sentry", func(in *Input) { plain(in); in.Store.Disk.NoExec = true }, "store.exec", Bad, Limited, "the sentry can execute nothing", ""},
		{"little memory", func(in *Input) { in.Limits.MemoryBytes = 256 << 20 }, "limits.memory", Short, Limited, "256MiB", "--memory 2g"},
		{"enough memory", func(in *Input) { in.Limits.MemoryBytes = 1 << 30 }, "limits.memory", OK, Fit, "1GiB", ""},
		{"few processes", func(in *Input) { in.Limits.Pids, in.Limits.PidsUsed = 100, 3 }, "limits.pids", Short, Limited, "100 processes and threads, of which there are 3", "--pids-limit 2048"},
		{"silent registry", func(in *Input) {
			in.Registries = []registry.Reach{{Place: registry.Place{Host: "r", As: "mirror of docker.io"}, Err: errors.New("no answer within 500ms")}}
		}, "registry.r", Short, Limited, "r, mirror of docker.io: no answer", ""},
		{"no capability for networks", func(in *Input) {
			in.Network = Chosen{Name: "host", Why: "shared", Better: "userns", BetterWhy: "make a bridge"}
			in.Networks.Facts.Namespaces = unix.EPERM
		}, "network", Note, Fit, "host: shared", "--cap-add NET_ADMIN --cap-add NET_RAW"},
		{"no routing", func(in *Input) {
			in.Facts.CapEff |= 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
			in.Network = Chosen{Name: "userns", Better: "bridge", BetterWhy: "the kernel does not route"}
			in.Networks.Facts.Forwarding = unix.EROFS
		}, "network", Note, Fit, "", "--sysctl net.ipv4.ip_forward=1"},
		{"no nftables", func(in *Input) {
			in.Facts.CapEff |= 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
			in.Network = Chosen{Name: "userns", Better: "bridge", BetterWhy: "nftables"}
			in.Networks.Facts.Rules = unix.ENOTSUP
		}, "network", Note, Fit, "", ""},
		{"networks of the sentry", func(in *Input) { plain(in); in.Network = Chosen{Name: "switch", Better: "userns", BetterWhy: "no"} }, "network", OK, Fit, "switch", ""},
		{"a daemon", func(in *Input) { in.Serve.InUse = true }, "serve.socket", OK, Fit, "a daemon is there", ""},
		{"no socket", func(in *Input) { in.Serve.Err = unix.EROFS }, "serve.socket", Note, Fit, "cannot listen where it does by itself: read-only", "--tmpfs /var/run:exec,mode=1777"},
		{"no low ports", func(in *Input) { in.Networks.Ports.Low = unix.EACCES }, "serve.ports", Note, Fit, "none below 1024: permission denied", "--sysctl net.ipv4.ip_unprivileged_port_start=0"},
		{"no ports", func(in *Input) { in.Networks.Ports.TCP = unix.EPERM }, "serve.ports", Short, Limited, "no TCP port", ""},
		{"no UDP ports", func(in *Input) { in.Networks.Ports.UDP = unix.EPERM }, "serve.ports", Short, Limited, "no UDP port", ""},
		{"year", func(in *Input) { in.Now = time.Unix(0, 0) }, "clock", Bad, Limited, "never set", ""},
		{"file times", func(in *Input) { in.Store.Disk.Ahead = -time.Hour }, "clock", Short, Limited, "1h0m0s off", ""},
		{"behind", func(in *Input) {
			in.Registries = []registry.Reach{{Place: registry.Place{Host: "r"}, At: in.Now, Date: in.Now.Add(10 * time.Minute)}}
		}, "clock", Short, Limited, "10m0s behind than that of r", ""},
		{"days ahead", func(in *Input) {
			in.Registries = []registry.Reach{{Place: registry.Place{Host: "r"}, At: in.Now, Date: in.Now.Add(-48 * time.Hour)}}
		}, "clock", Bad, Limited, "48h0m0s further", ""},
		{"agrees", func(in *Input) {
			in.Registries = []registry.Reach{{Place: registry.Place{Host: "r"}, At: in.Now, Date: in.Now.Add(time.Second)}}
		}, "clock", OK, Fit, "r agrees", ""},
	} {
		in := good()
		c.change(&in)
		r := examine(in)
		got := r.check(t, c.id)
		if got.Status != c.status || r.Verdict != c.verdict || !strings.Contains(got.Text, c.text) {
			t.Errorf("%s: %s, %+v", c.name, r.Verdict, got)
		}
		line := ""
		if got.Fix != nil {
			line = got.Fix.Docker
		}
		if line != c.docker {
			t.Errorf("%s: docker run %q, want %q", c.name, line, c.docker)
		}
	}
}

func TestKernelSettingsAreLiftedOnTheMachine(t *testing.T) {
	in := good()
	in.Facts.Trial, in.Facts.Userns, in.Facts.UID = filtered, noUserns(), 1000
	in.Facts.Settings = []string{"kernel.unprivileged_userns_clone=0", "user.max_user_namespaces=0", "kernel.apparmor_restrict_unprivileged_userns=1"}
	want := []string{"sysctl -w kernel.unprivileged_userns_clone=1", "sysctl -w user.max_user_namespaces=15000", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"}
	if got := examine(in).check(t, "rung").Fix.Machine; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// The names are a promise: docs/doctor.md has them.
func TestJSONKeepsItsNames(t *testing.T) {
	in := good()
	in.Facts.Trial, in.Facts.Userns, in.Facts.UID = filtered, noUserns(), 1000
	in.Facts.Sentry = &probe.SentryTrial{Platform: "systrap"}
	b, err := json.Marshal(examine(in))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	keys := func(v any) string {
		var k []string
		for name := range v.(map[string]any) {
			k = append(k, name)
		}
		slices.Sort(k)
		return strings.Join(k, " ")
	}
	if k := keys(got); k != "checks network rung schema storage verdict version" {
		t.Error(k)
	}
	if k := keys(got["rung"]); k != "better betterWhy cannot isolation name platform why" {
		t.Error(k)
	}
	for _, c := range got["checks"].([]any) {
		check := c.(map[string]any)
		if k := keys(c); k != "area id status text" && k != "area fix id status text" {
			t.Error(k)
		}
		if check["id"] == "rung" {
			if k := keys(check["fix"]); k != "compose docker gitlab kubernetes" {
				t.Error(k)
			}
		}
	}
}

func TestChecksHaveDifferentIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range examine(good()).Checks {
		if seen[c.ID] {
			t.Errorf("%s twice", c.ID)
		}
		seen[c.ID] = true
	}
}

func TestReportIsPlainAndWrapsOnATerminal(t *testing.T) {
	in := good()
	in.Facts.Trial, in.Facts.Userns = filtered, noUserns()
	r := examine(in)
	r.Checks[0].Text = "a\x1b[31mb\nc"
	show := func(s Style) string {
		var b bytes.Buffer
		if err := r.Print(&b, s); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	plain := show(Style{})
	if strings.Contains(plain, "\x1b[") {
		t.Error("colours where there is no terminal")
	}
	if !strings.Contains(plain, "docker run  --security-opt seccomp=unconfined") {
		t.Errorf("the line is not there to be copied:\n%s", plain)
	}
	if !strings.Contains(show(Style{Colour: true}), "\x1b[31mbad\x1b[0m") {
		t.Error("no colours on a terminal")
	}
	for _, width := range []int{100, 60, 40} {
		wrapped := show(Style{Width: width})
		for line := range strings.Lines(wrapped) {
			// What is there to be copied stays whole, and so does a word.
			line = strings.TrimRight(line, "\n")
			if utf8.RuneCountInString(line) > width && !strings.Contains(line, "=unconfined") && !strings.Contains(line, "  # of") && !strings.Contains(line, "# in [") && len(strings.Fields(line)) > 1 {
				t.Errorf("%d columns: %q", width, line)
			}
		}
		if got, want := strings.Fields(wrapped), strings.Fields(plain); !slices.Equal(got, want) {
			t.Errorf("%d columns: other words:\n%s", width, wrapped)
		}
	}
}
