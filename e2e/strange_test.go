package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// strangers are commands of each kind that a job may begin with.
var strangers = []string{"info", "prune --force", "ps -a", "images", "store verify", "build -q ctx", "run --rm @small true", "serve --idle-exit=100ms"}

// Where the container around den offers next to nothing each command works, or says in a sentence what
// stands in its way and what to do. All of it as a random uid without a line in /etc/passwd, in group 0.
func TestStrangeContainersGetASentence(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	anybody := []string{"--user=1000670000:0", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--security-opt=seccomp=" + currentProfile(t)}
	const noStore, noSocket = "set DEN_STORE to a directory that can be written", "name a place that can be written with --host"
	for name, c := range map[string]struct {
		flags []string
		env   string
		want  map[string]string // by command; "" of a command is success; "*" is for all others
	}{
		"nothing to write in":       {[]string{"--read-only"}, "", map[string]string{"*": noStore, "serve": noSocket}},
		"neither HOME nor /dev/shm": {[]string{"--read-only", "--ipc=none"}, "-u HOME", map[string]string{"*": noStore, "serve": noSocket}},
		"a tmpfs for the store alone": {[]string{"--read-only", "--ipc=none", "--tmpfs=/s:exec,mode=1777"}, "-u HOME DEN_STORE=/s/x TMPDIR=/nowhere",
			map[string]string{"*": "", "serve": noSocket}},
		"a HOME and a TMPDIR of others": {[]string{"--read-only", "--tmpfs=/s:exec,mode=1777"}, "HOME=/root TMPDIR=/etc DEN_STORE=/s/x", map[string]string{"*": "", "serve": noSocket}},
		"Docker's own tmpfs": {[]string{"--tmpfs=/s:mode=1777"}, "DEN_STORE=/s/x",
			map[string]string{"*": "", "build": "mount it with exec", "run": "mount it with exec", "serve": "mount it with exec"}},
		"a full disk":        {[]string{"--tmpfs=/s:exec,mode=1777,size=64k"}, "DEN_STORE=/s/x", map[string]string{"*": "", "build": "den prune --all --force makes room", "run": "den prune --all --force makes room"}},
		"a store of root's":  {[]string{"-v=den-e2e-root:/s"}, "DEN_STORE=/s/x", map[string]string{"*": noStore}},
		"a file for a store": {nil, "DEN_STORE=/etc/passwd", map[string]string{"*": noStore}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{"ctx/Dockerfile": "FROM @small\nRUN echo x > /x\n"})
			if err := os.Chmod(d.home, 0o777); err != nil {
				t.Fatal(err)
			}
			var script strings.Builder
			for _, command := range strangers {
				first, _, _ := strings.Cut(command, " ")
				script.WriteString("env " + c.env + " den " + expand(t, command) + " >/dev/null 2>/work/said." + first + " && echo " + first + " works\n")
			}
			out, err := outer{docker, d, append(append([]string{}, anybody...), c.flags...)}.sh("set +e\n" + script.String() + "true")
			if err != nil {
				t.Fatal(err)
			}
			for _, command := range strangers {
				first, _, _ := strings.Cut(command, " ")
				want, ok := c.want[first]
				if !ok {
					want = c.want["*"]
				}
				said, err := os.ReadFile(filepath.Join(d.home, "said."+first))
				if err != nil {
					t.Fatal(err)
				}
				if works := strings.Contains(out, first+" works\n"); works != (want == "") || !strings.Contains(string(said), want) {
					t.Errorf("den %s: works: %t, want %q:\n%s", command, works, want, said)
				}
				if strings.Contains(string(said), "goroutine ") || strings.Contains(string(said), "panic") {
					t.Errorf("den %s panics:\n%s", command, said)
				}
			}
		})
	}
}

// A file system that other machines may see has no locks that hold: each command refuses to have its store there. FUSE
// stands for NFS and the like.
func TestStoreOnAForeignFileSystemIsRefused(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := newDen(t)
	for _, dir := range []string{"lower", "upper", "work", "mnt"} {
		if err := os.Mkdir(filepath.Join(d.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(dir string) string { return filepath.Join(d.home, dir) }
	b, err := exec.Command("fuse-overlayfs", "-o", "lowerdir="+in("lower")+",upperdir="+in("upper")+",workdir="+in("work"), in("mnt")).CombinedOutput()
	if err != nil {
		t.Skipf("needs fuse-overlayfs: %v\n%s", err, b)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(in("mnt"), syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d = d.with("DEN_STORE=" + filepath.Join(in("mnt"), "store"))
	for _, command := range []string{"info", "ps", "prune --force", "pull @small"} {
		d.fails(strings.Fields(expand(t, command)), "locks between machines or kernels do not hold; set DEN_STORE to a directory on a local disk or a tmpfs")
	}
	if r := d.try(nil, "doctor"); r.code != 1 || !strings.Contains(r.out, "locks between machines or kernels do not hold") {
		t.Errorf("doctor: exit %d: %s", r.code, r.out)
	}
}
