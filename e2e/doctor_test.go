package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A diagnosis is what den doctor --format json says: docs/doctor.md.
type diagnosis struct {
	Schema  int
	Verdict string
	Rung    struct{ Name, Why, Better, BetterWhy string }
	Storage struct{ Name string }
	Network struct{ Name, Why, Better, BetterWhy string }
	Checks  []finding
}

type finding struct {
	ID, Area, Status, Text string
	Fix                    *struct{ Docker string }
}

// doctor runs den doctor in a container, the store where den puts it by itself.
func (o outer) doctor(t *testing.T, flags ...string) diagnosis {
	t.Helper()
	o.flags = append(slices.Clone(o.flags), flags...)
	out, err := o.sh(`den doctor --format json || test $? = 1`)
	if err != nil {
		t.Fatal(err)
	}
	var d diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Schema != 1 {
		t.Fatalf("%v in %s", err, out)
	}
	return d
}

// find is the check with that id; one that does not apply is zero.
func (d diagnosis) find(id string) finding {
	for _, c := range d.Checks {
		if c.ID == id {
			return c
		}
	}
	return finding{}
}

// strength orders rungs.
func strength(rung string) int {
	return slices.Index([]string{"none", "chroot", "restricted", "default", "userns", "privileged"}, rung)
}

// Doctor's verdict is right in every outer container, and each flag that it
// suggests lifts what it is suggested for.
func TestDoctorIsRightAndItsLinesHelp(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	restricted := []string{"--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--pids-limit=512", "--memory=2g"}
	for _, c := range []struct {
		name          string
		flags         []string
		rung, verdict string
		short         []string // ids that are short or bad, or notes with a line
	}{
		{"plain", nil, "default", "limited", []string{"rung", "store.place"}},
		{"plain with a volume", []string{"-v", "den-e2e:/var/lib/den"}, "default", "fit", []string{"rung"}},
		{"plain with Docker's tmpfs", []string{"--tmpfs=/var/lib/den:size=4g"}, "default", "limited", []string{"rung", "store.exec"}},
		{"plain with today's profile", []string{"--security-opt=seccomp=" + mobyProfile(t)}, "default", "limited", []string{"rung", "store.place"}},
		{"restricted with today's profile", append([]string{"--user=1000:1000", "--security-opt=seccomp=" + mobyProfile(t)}, restricted...), "restricted", "unfit", []string{"rung", "serve.socket", "serve.ports", "store.place"}},
		{"restricted", append([]string{"--user=1000:1000"}, restricted...), "restricted", "unfit", []string{"rung", "serve.socket", "serve.ports", "store.place"}},
		{"random uid", append([]string{"--user=1000670000:0"}, restricted...), "restricted", "unfit", []string{"rung", "serve.socket", "serve.ports", "store.place"}},
		{"random uid that may write", []string{"--user=1000670000:0", "--cap-drop=ALL"}, "restricted", "limited", []string{"rung", "serve.ports", "store.place"}},
		{"user with user namespaces", append([]string{"--user=1000"}, unconfined...), "restricted", "limited", []string{"rung", "serve.socket", "serve.ports", "store.place"}},
		{"unconfined", unconfined, "default", "limited", []string{"rung", "store.place"}},
		{"unconfined with a volume", append([]string{"-v", "den-e2e:/var/lib/den"}, unconfined...), "userns", "limited", []string{"rung.pids", "rung.limits", "serve.ports"}},
		{"nearly privileged", append([]string{"--security-opt=systempaths=unconfined"}, capable...), "default", "limited", []string{"rung", "store.place"}},
		{"nearly privileged with a volume", append([]string{"-v", "den-e2e:/var/lib/den", "--security-opt=systempaths=unconfined"}, capable...), "privileged", "fit", []string{"rung.limits"}},
		{"without chown", append([]string{"-v", "den-e2e:/var/lib/den", "--cap-drop=CHOWN", "--cap-drop=SETFCAP"}, capable...), "privileged", "limited", []string{"rung.capabilities", "rung.limits"}},
		{"small", append([]string{"--memory=128m", "--pids-limit=64", "--tmpfs=/var/lib/den:size=64m"}, unconfined...), "userns", "limited",
			[]string{"rung.pids", "rung.limits", "serve.ports", "store.space", "store.exec", "limits.memory", "limits.pids"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := outer{docker, newDen(t), c.flags}
			d := o.doctor(t)
			if d.Rung.Name != c.rung {
				t.Errorf("rung %s, want %s: %s", d.Rung.Name, c.rung, d.Rung.Why)
			}
			if d.Verdict != c.verdict {
				t.Errorf("verdict %s, want %s: %+v", d.Verdict, c.verdict, d.Checks)
			}
			if d.Rung.Name != "privileged" && (d.Rung.Better == "" || d.Rung.BetterWhy == "") {
				t.Errorf("it does not say why not better: %+v", d.Rung)
			}
			network := map[string]string{"userns": "userns", "privileged": "bridge"}[c.rung]
			if got := cmp.Or(network, "switch"); d.Network.Name != got || (d.Network.Better == "") != (got == "bridge") || (d.Network.BetterWhy == "") != (got == "bridge") {
				t.Errorf("network %+v, want %s", d.Network, got)
			}
			var short []string
			for _, f := range d.Checks {
				if f.Status == "short" || f.Status == "bad" || f.Fix != nil {
					short = append(short, f.ID)
				}
			}
			equal(t, "what is short", c.short, short)
			for _, f := range d.Checks {
				if f.Fix == nil || f.Fix.Docker == "" {
					continue
				}
				t.Run(f.ID, func(t *testing.T) { t.Parallel(); o.lifts(t, d, f) })
			}
		})
	}
}

// mobyProfile is the seccomp profile of today's dockerd; the one of the tests may be
// years old.
func mobyProfile(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/profiles/seccomp")
	cmd.Dir = ".."
	dir, err := output(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(dir), "default.json")
}

// lifts applies a line and looks whether what it is for is gone.
func (o outer) lifts(t *testing.T, before diagnosis, f finding) {
	t.Helper()
	if strings.Contains(f.Fix.Docker, "writable-cgroups") {
		t.Skip("needs Docker 28 or later")
	}
	flags := strings.Fields(f.Fix.Docker)
	if strings.Contains(f.Fix.Docker, "--sysctl") {
		flags = append(flags, "--network=none") // that of the host is not the container's to set
	}
	after := o.doctor(t, flags...)
	if f.ID == "rung" {
		if strength(after.Rung.Name) <= strength(before.Rung.Name) {
			t.Errorf("docker run %s: the rung was %s and is %s: %s", f.Fix.Docker, before.Rung.Name, after.Rung.Name, after.Rung.Why)
		}
		return
	}
	if got := after.find(f.ID); got.Status == "short" || got.Status == "bad" || got.Fix != nil {
		t.Errorf("docker run %s: it was %q and is %s, %q", f.Fix.Docker, f.Text, got.Status, got.Text)
	}
}

// Doctor works where there is nothing but den and /proc: no /etc, /sys, /dev or /tmp.
func TestDoctorNeedsNothingButProc(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, c := range []struct {
		uid  uint32
		code int
	}{{0, 0}, {1000670000, 1}} {
		d := newDen(t)
		proc := filepath.Join(d.home, "proc")
		if err := errors.Join(copyFile(env.den, filepath.Join(d.home, "den")), os.Chmod(d.home, 0o755), os.Mkdir(proc, 0o555)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("proc", proc, "proc", 0, ""); err != nil {
			t.Skipf("needs to mount proc: %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(proc, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		cmd := d.command(t.Context(), "doctor", "--format", "json")
		cmd.Path, cmd.Dir, cmd.Env = "/den", "/", []string{"PATH=/"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: d.home, Credential: &syscall.Credential{Uid: c.uid}}
		r := d.finish(t.Context(), cmd, nil)
		var got diagnosis
		if err := json.Unmarshal([]byte(r.out), &got); err != nil {
			t.Fatalf("%v in %s%s", err, r.out, r.err)
		}
		if r.code != c.code || (got.Verdict == "unfit") != (c.code == 1) || got.find("outer.cgroups").Status != "note" {
			t.Errorf("uid %d: exit %d, %+v", c.uid, r.code, got)
		}
	}
}

// Without /proc nothing of den runs, and each command says so in a sentence.
func TestEveryCommandSaysThatItNeedsProc(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := newDen(t)
	if err := errors.Join(copyFile(env.den, filepath.Join(d.home, "den")), os.Chmod(d.home, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"doctor"}, {"info"}, {"version"}, {"build", "."}, {"serve"}} {
		cmd := d.command(t.Context(), args...)
		cmd.Path, cmd.Dir, cmd.Env = "/den", "/", []string{"PATH=/"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: d.home}
		r := d.finish(t.Context(), cmd, nil)
		if r.code != 1 || !strings.Contains(r.err, "no command of den runs without /proc") || strings.Count(r.err, "\n") != 1 {
			t.Errorf("den %s: exit %d: %s%s", args, r.code, r.out, r.err)
		}
	}
}

// Nobody is asked whom nobody named, and a clock is compared with who answers.
func TestDoctorAsksTheRegistriesThatAreNamed(t *testing.T) {
	t.Parallel()
	host := needRegistry(t)
	d := newDen(t)
	var got diagnosis
	for range 20 { // doctor gives a registry half a second, which on a busy machine is little
		out := d.run("doctor", "--format", "json", "--registry", host)
		got = diagnosis{}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got.find("registry."+host).Text, "no answer within") {
			break
		}
	}
	if f := got.find("registry." + host); f.Status != "ok" {
		t.Errorf("%+v", f)
	}
	if f := got.find("clock"); f.Status != "ok" || !strings.Contains(f.Text, host+" agrees") {
		t.Errorf("%+v", f)
	}
	if out := d.run("doctor"); strings.Contains(out, host) || !strings.Contains(out, "none was asked") {
		t.Error(out)
	}
}

// In each kind of outer container doctor says the rung and its verdict in words, ends at once and with 0, and
// colours what it says only on a terminal.
func TestDoctorSpeaksInEveryOuterContainer(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for _, k := range outerKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			out, err := k.outer(t, docker).sh(`den doctor; echo exit $?
for i in $(seq 20); do read a _ </proc/uptime; den doctor >/dev/null; read b _ </proc/uptime; echo $a $b | awk '{print "took", ($2-$1 < 1 ? "little" : "long")}'; done`)
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{k.rung, "exit 0\n", "took little\n"} { // a busy machine may take long now and then
				if !strings.Contains(out, word) {
					t.Errorf("it does not say %q:\n%s", word, out)
				}
			}
			if k.rung == "privileged" == strings.Contains(out, "--security-opt seccomp=unconfined") && k.name != "user with user namespaces" {
				t.Errorf("the line that lifts the rung:\n%s", out)
			}
			if strings.Contains(out, "\x1b[") {
				t.Errorf("it is coloured in a file:\n%q", out)
			}
		})
	}
}

// The binary stays small.
func TestBinaryIsSmall(t *testing.T) {
	t.Parallel()
	const most = 60_000_000
	fi, err := os.Stat(env.den)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > most {
		t.Errorf("den takes %d bytes, want at most %d", fi.Size(), most)
	}
}
