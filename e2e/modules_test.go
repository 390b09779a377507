package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where a security module refuses what den is otherwise allowed, den names its profile or type, and the setting
// that lifts it. No module runs in CI: a filter refuses with a module's errno, and the label is a file
// that is mounted over the kernel's.
func TestRefusalsOfSecurityModulesAreNamed(t *testing.T) {
	t.Parallel()
	docker := needDockerd(t)
	const apparmor, selinux = "den-e2e (enforce)", "system_u:system_r:den_t:s0:c1,c2"
	const byAppArmor, bySELinux = "forbidden by the AppArmor profile den-e2e: docker run --security-opt apparmor=unconfined", "forbidden by the SELinux policy for den_t: docker run --security-opt label=disable"
	for name, c := range map[string]struct {
		calls, label, command string
		want                  []string
	}{
		"mounts":           {"fsopen", apparmor, "den doctor", []string{"fsopen: permission denied", byAppArmor}},
		"roots":            {"pivot_root", selinux, "den doctor", []string{"pivot_root: permission denied", bySELinux}},
		"copies of mounts": {"open_tree", selinux, "den build --isolation=privileged ctx", []string{"clone a device: open_tree: permission denied", bySELinux}},
		"moves of mounts":  {"move_mount", apparmor, "den build --isolation=userns ctx", []string{"move_mount: permission denied", byAppArmor}},
		"namespaces":       {"unshare", selinux, "den build --isolation=userns ctx", []string{"unshare(CLONE_NEWUSER): permission denied", bySELinux}},
		"networks":         {"unshare", apparmor, "den doctor", []string{"containers share the outer network: new network namespace: permission denied; if no permission is in the way, it is " + byAppArmor}},
		"overlays":         {"fsconfig", apparmor, "den doctor", []string{"fsconfig: permission denied", byAppArmor}},
		"tracing":          {"ptrace", selinux, "DEN_ISOLATION=sentry den doctor", []string{"if it is ptrace that was refused, it is " + bySELinux}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDen(t)
			d.fill(d.home, files{
				"profile.json":   fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[%q],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}`, c.calls),
				"label":          c.label,
				"ctx/Dockerfile": "FROM @small\nRUN true\n",
			})
			if err := os.Chmod(d.home, 0o777); err != nil {
				t.Fatal(err)
			}
			flags := []string{"-v", "den-e2e:/var/lib/den", "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--security-opt=apparmor=unconfined", "--security-opt=seccomp=" + filepath.Join(d.home, "profile.json")}
			out, err := outer{docker, d, flags}.sh("mount --bind /work/label /proc/$$/attr/current\nexec env " + c.command + " 2>&1")
			if err != nil && !strings.Contains(c.command, "build") {
				t.Fatal(err)
			}
			if err != nil {
				out += err.Error()
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("it does not say %q:\n%s", w, out)
				}
			}
		})
	}
}
