package e2e

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// outer is a container of dockerd in which den does its work: what a CI job is.
type outer struct {
	docker dockerd
	d      *den
	flags  []string
}

// sh runs a script in a fresh container with den in it, the test's directory
// as /work, and the host's network for the registry.
func (o outer) sh(script string) (string, error) {
	flags := o.flags
	if !slices.ContainsFunc(flags, func(f string) bool { return strings.HasPrefix(f, "--network=") }) {
		flags = append([]string{"--network=host"}, flags...)
	}
	args := append([]string{"run", "--rm", "-v", env.den + ":/bin/den:ro", "-v", o.d.home + ":/work", "-w", "/work"}, flags...)
	return o.docker.try(append(args, smallImage(o.d.t), "sh", "-ec", script)...)
}

// capable is root as a machine gives it that keeps a few capabilities for itself.
var capable = []string{"--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", "--cap-add=NET_ADMIN", "--cap-add=DAC_READ_SEARCH",
	"--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"}

// unconfined is what rung userns needs and no more.
var unconfined = []string{"--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"}

// nothing is what a pod of Kubernetes' profile "restricted" has.
var nothing = []string{"--cap-drop=ALL", "--security-opt=no-new-privileges"}

const nestedDockerfile = `FROM @small
RUN --mount=type=cache,target=/c mkdir /srv && echo nested > /srv/file && chown 33:44 /srv/file && chmod 4755 /srv/file && touch /c/x
COPY f /f
USER app
RUN id -u > /tmp/id
`

func TestDenWorksInsideContainers(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for _, c := range []struct {
		name, rung string
		flags      []string
	}{
		{"privileged", "privileged", []string{"--privileged"}},
		{"capable", "privileged", capable},
		{"capable but for chown", "userns", append([]string{"--cap-drop=CHOWN"}, capable...)},
		{"without seccomp", "userns", unconfined},
		{"without seccomp and masks", "userns", append([]string{"--security-opt=systempaths=unconfined"}, unconfined...)},
		{"plain", "default", nil},
		{"restricted", "restricted", append([]string{"--user=1000:1000", "--read-only", "--pids-limit=512", "--memory=2g"}, nothing...)},
		{"random uid", "restricted", append([]string{"--user=1000670000:0"}, nothing...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f"})
			if err := os.Chmod(d.home, 0o777); err != nil {
				t.Fatal(err)
			}
			o := outer{docker, d, append(c.flags, "-e", "DEN_STORE=/work/store")}
			script := `den info; den build -q -t nested -o type=tar,dest=/work/out.tar ctx; den build -q -t nested ctx; den run --rm nested stat -c '%a %u:%g %n' /srv/file; den run --rm --network=none nested cat /tmp/id`
			if c.rung == "userns" || c.rung == "privileged" { // a sentry's devices are its own
				script += `; den run --rm -u 0 nested toolbox hostile /dev/shm`
			}
			out, err := o.sh(script)
			if err != nil && strings.Contains(err.Error(), "unable to apply caps") {
				t.Skip("needs a root with all capabilities")
			}
			if err != nil {
				t.Fatal(err)
			}
			rung := ""
			for line := range strings.Lines(out) {
				if r, ok := strings.CutPrefix(line, "Rung:"); ok {
					rung = strings.Fields(r)[0]
				}
			}
			if rung != c.rung || !strings.HasSuffix(out, "4755 33:44 /srv/file\n1000\n") {
				t.Errorf("on rung %s, want %s:\n%s", rung, c.rung, out)
			}
			tr := readTree(t, filepath.Join(d.home, "out.tar"))
			tr.is(t, "srv/file", "file 4755 33:44")
			tr.holds(t, "tmp/id", "1000\n")
			// The next job, another container, finds everything in the store.
			out, err = o.sh(`den build --progress=rawjson ctx 2>&1`)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "executed by the next job", []string(nil), executed(t, out))
		})
	}
}

func TestForcedRungThatCannotWorkGetsOneClearError(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for name, flags := range map[string][]string{
		"plain":      nil,
		"restricted": append([]string{"--user=1000:1000", "-e", "HOME=/tmp"}, nothing...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			for rung, words := range map[string][]string{
				"privileged": {"isolation privileged:", "it needs CAP_SYS_ADMIN"},
				"userns":     {"isolation userns:", "unshare(CLONE_NEWUSER)", "seccomp=unconfined"},
			} {
				_, err := outer{docker, d, append(flags, "-e", "DEN_STORE=/tmp/store", "-e", "DEN_ISOLATION="+rung)}.sh(`mkdir /tmp/ctx; cd /tmp/ctx; echo FROM ` + smallImage(t) + ` > Dockerfile; echo RUN true >> Dockerfile; den build .`)
				if err == nil {
					t.Fatalf("the build succeeds on rung %s", rung)
				}
				for _, word := range words {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("the error does not say %q:\n%v", word, err)
					}
				}
			}
		})
	}
}

// The kernel puts no overlay on a container's own file system: the sentry merges layers there,
// and full copies are made only for who asks.
func TestStoreOnAContainersOwnOverlayIsForTheSentry(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	const work = `den build -t nested ctx 2>&1; den run --rm nested stat -c '%a %u:%g' /srv/file; den build --progress=rawjson ctx 2>/work/json; den info`
	for _, c := range []struct {
		name  string
		flags []string
		env   string
		words []string // or of the error
		fails bool
	}{
		{"nearly privileged", capable, "", []string{"4755 33:44", "Rung:            default (sentry", "Storage driver:  erofs", "-v den:/var/lib/den"}, false},
		{"user namespaces", unconfined, "", []string{"4755 33:44", "Rung:            default (sentry", "Storage driver:  erofs", "-v den:/var/lib/den"}, false},
		{"copies are wanted", capable, "DEN_STORAGE_DRIVER=copy", []string{"4755 33:44", "Rung:            privileged", "copies its whole root"}, false},
		{"the rung is wanted", capable, "DEN_ISOLATION=privileged", []string{"DEN_STORAGE_DRIVER=copy", "-v den:/var/lib/den"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f"})
			out, err := outer{docker, d, slices.Concat(c.flags, []string{"-e", cmp.Or(c.env, "NOTHING=")})}.sh(work)
			if (err != nil) != c.fails {
				t.Fatalf("%v\n%s", err, out)
			}
			if err != nil {
				out += err.Error()
			}
			for _, word := range c.words {
				if !strings.Contains(out, word) {
					t.Errorf("den does not say %q:\n%s", word, out)
				}
			}
			if strings.Contains(out, "copies its whole root") != (c.env == "DEN_STORAGE_DRIVER=copy") {
				t.Errorf("den copies, or does not:\n%s", out)
			}
		})
	}
}

func TestReadOnlyContainerHasItsStoreOnTheVolume(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f", "store/": ""})
	o := outer{docker, d, append([]string{"--read-only", "-v", d.store() + ":/var/lib/den"}, unconfined...)}
	out, err := o.sh(`den build -q -t nested ctx; den run --rm nested stat -c '%a %u:%g' /srv/file; den images -q nested`)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || lines[1] != "4755 33:44" {
		t.Errorf("want an id, a mode and an id:\n%s", out)
	}
	// Names are the job's own, though all of its file systems but /dev/shm are read-only or shared.
	if out, err := o.sh(`den images -q nested`); err != nil || out != "" {
		t.Errorf("the next job has names of the one before: %q, %v", out, err)
	}
}

// Docker mounts a tmpfs noexec.
func TestStoreOnATmpfsSaysWhatCannotBeExecuted(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": "FROM @small\nRUN --mount=type=cache,target=/c cp /bin/busybox /c/true && /c/true\n"})
	_, err := outer{docker, d, append([]string{"--tmpfs", "/var/lib/den"}, unconfined...)}.sh(`den build ctx`)
	if err == nil || !strings.Contains(err.Error(), "/var/lib/den is mounted noexec") {
		t.Errorf("noexec: %v", err)
	}
	out, err := outer{docker, d, append([]string{"--tmpfs", "/var/lib/den:exec"}, unconfined...)}.sh(`den build ctx 2>&1`)
	if err != nil || strings.Contains(out, "noexec") {
		t.Errorf("exec: %v\n%s", err, out)
	}
}

// What needs no namespaces works without any.
func TestImagesTravelWhereNothingIsAllowed(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	for name, flags := range map[string][]string{
		"plain":      nil,
		"restricted": append([]string{"--user=1000:1000"}, nothing...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			from, to := smallImage(t), newName(t)
			d.fill(d.home, files{"ctx/Dockerfile": "FROM " + from + "\nCOPY f /f\n", "ctx/f": "f"})
			o := outer{docker, d, append([]string{"-e", "DEN_STORE=/tmp/store", "-e", "DEN_DATA_ROOT=/tmp/engine"}, flags...)}
			script := strings.NewReplacer("FROM", from, "TO", to).Replace(`den pull -q FROM; den tag FROM TO; den push -q TO; den rmi FROM TO
				den pull -q TO; den save -o /tmp/x.tar TO; den rmi TO; den load -qi /tmp/x.tar; den push -q TO; den inspect TO; den history TO; den images; den info; den rmi TO; den prune -f --all`)
			if name == "plain" {
				script += "; den build -q -t copied ctx; den save -o /tmp/y.tar copied"
			}
			if _, err := o.sh(script); err != nil {
				t.Error(err)
			}
			if _, err := o.sh(`den run --rm ` + from + ` true`); err != nil {
				t.Errorf("den run: %v", err)
			}
		})
	}
}

func TestStoreThatIsSomebodyElsesSaysWhoMayWrite(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"store/": ""})
	for _, c := range []struct{ home, want string }{
		{"/home/app", "it belongs to uid 0 and this is uid 1000"}, // root's volume
		{"/", "on this container's own file system"},              // a home that cannot be written
	} {
		o := outer{docker, d, []string{"--user=1000", "-e", "HOME=" + c.home, "-v", d.store() + ":/home/app/.local/share/den"}}
		if out, _ := o.sh(`den images 2>&1`); !strings.Contains(out, c.want) {
			t.Errorf("HOME=%s: den does not say %q:\n%s", c.home, c.want, out)
		}
	}
}

func TestContainersOfSeveralRungsShareAStoreAtOnce(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	d := newDen(t)
	d.fill(d.home, files{"ctx/Dockerfile": nestedDockerfile, "ctx/f": "f"})
	var wg sync.WaitGroup
	for name, flags := range map[string][]string{
		"capable":  capable,
		"shared":   unconfined,
		"unmasked": append([]string{"--security-opt=systempaths=unconfined"}, unconfined...),
		"plain":    nil,
	} {
		script := `den build -q -t mine ctx; den run --rm mine stat -c '%a %u:%g' /srv/file; den images -q mine | wc -l`
		if name == "plain" {
			script = `den pull -q ` + smallImage(t) + `; den tag ` + smallImage(t) + ` mine; den save -o /tmp/x.tar mine; echo 4755 33:44; den images -q mine | wc -l`
		}
		wg.Go(func() {
			out, err := outer{docker, d, append([]string{"-v", d.store() + ":/var/lib/den"}, flags...)}.sh(script)
			if err != nil || !strings.HasSuffix(out, "4755 33:44\n1\n") {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		})
	}
	wg.Wait()
	d.run("store", "verify", "--deep")
}

// A sandbox is an outer container, too; a plain user's is in a user namespace already.
func TestDenWorksInsideDen(t *testing.T) {
	t.Parallel()
	strongRungs(t, func(t *testing.T, d *den) {
		container(t, d)
		ctx := d.dir(files{"Dockerfile": nestedDockerfile, "f": "f"})
		out := d.run("run", "--rm", "--security-opt", "seccomp=unconfined", "-v", "inner:/var/lib/den", "-v", env.den+":/bin/den:ro", "-v", ctx+":/ctx:ro", "small",
			"sh", "-ec", "den build -q -t nested /ctx; den run --rm nested stat -c '%a %u:%g' /srv/file; den run --rm -u 0 nested toolbox hostile")
		if !strings.HasSuffix(out, "\n4755 33:44\n") {
			t.Error(out)
		}
	})
}
