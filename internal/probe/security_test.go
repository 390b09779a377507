package probe

import (
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

func TestLabelsOfSecurityModules(t *testing.T) {
	for text, want := range map[string]Security{
		"":                                    {},
		"unconfined\n":                        {},
		"docker-default (enforce)\n":          {AppArmor: "docker-default"},
		"cri-containerd.apparmor.d (enforce)": {AppArmor: "cri-containerd.apparmor.d"},
		"a//&b (kill)":                        {AppArmor: "a//&b"},
		"docker-default (complain)\n":         {},
		"system_u:system_r:container_t:s0:c1\x00":                   {SELinux: "container_t"},
		"system_u:system_r:spc_t:s0\x00":                            {},
		"unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\x00": {},
		"kernel":              {},
		"a\x1b[31m (enforce)": {},
		"\xff:\xff:\xff:\xff": {},
	} {
		if got := parseLabel(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// A label that looks like another module's is none where the kernel says what runs.
func TestOnlyModulesThatRunConfine(t *testing.T) {
	both := Security{AppArmor: "p", SELinux: "t"}
	for modules, want := range map[string]Security{
		"capability,yama,apparmor": {AppArmor: "p"},
		"capability,selinux,bpf":   {SELinux: "t"},
		"capability":               {},
	} {
		if got := both.among(strings.Split(modules, ",")); got != want {
			t.Errorf("%s: %+v, want %+v", modules, got, want)
		}
	}
}

// Where the labels are read from, and what may be covered.
func TestConfinementIsReadFromProc(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	const own, stacked, enforce, modules = "proc/self/attr/current", "proc/self/attr/apparmor/current", "sys/fs/selinux/enforce", "sys/kernel/security/lsm"
	const label = "system_u:system_r:container_t:s0:c1,c2\x00"
	for name, c := range map[string]struct {
		fs   fstest.MapFS
		mode int
		want Security
	}{
		"nothing":                     {nil, 0, Security{}},
		"a filter":                    {nil, 2, Security{Seccomp: true}},
		"strict mode":                 {nil, 1, Security{}},
		"AppArmor":                    {fstest.MapFS{own: file("docker-default (enforce)\n")}, 2, Security{AppArmor: "docker-default", Seccomp: true}},
		"AppArmor beside SELinux":     {fstest.MapFS{own: file(label), stacked: file("crun (enforce)\n")}, 0, Security{AppArmor: "crun", SELinux: "container_t"}},
		"SELinux that is permissive":  {fstest.MapFS{own: file(label), enforce: file("0")}, 0, Security{}},
		"SELinux that is enforced":    {fstest.MapFS{own: file(label), enforce: file("1")}, 0, Security{SELinux: "container_t"}},
		"a label of no module":        {fstest.MapFS{own: file(label), modules: file("capability,apparmor\n")}, 0, Security{}},
		"a profile of a module":       {fstest.MapFS{own: file("p (enforce)"), modules: file("capability,apparmor\n")}, 0, Security{AppArmor: "p"}},
		"a file that is far too long": {fstest.MapFS{own: file(strings.Repeat("x", 1<<20) + " (enforce)")}, 0, Security{}},
	} {
		if got := security(c.fs, sys.Status{Seccomp: c.mode}); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestRefusalNamesTheProfileAndTheSetting(t *testing.T) {
	apparmor, selinux, filter := Security{AppArmor: "docker-default", Seccomp: true}, Security{SELinux: "container_t", Seccomp: true}, Security{Seccomp: true}
	for _, c := range []struct {
		name  string
		s     Security
		errno unix.Errno
		want  []string // nothing: no sentence
		not   string
	}{
		{"mount under AppArmor", apparmor, unix.EACCES, []string{"AppArmor profile docker-default", "apparmor=unconfined", "appArmorProfile"}, "seccomp"},
		{"either", apparmor, unix.EPERM, []string{"docker-default", "seccomp=unconfined"}, ""},
		{"SELinux", selinux, unix.EACCES, []string{"container_t", "label=disable", "seLinuxOptions"}, "seccomp"},
		{"SELinux never says EPERM", selinux, unix.EPERM, []string{"seccomp=unconfined"}, "container_t"},
		{"filter", filter, unix.EPERM, []string{"seccomp profile"}, "AppArmor"},
		{"no module", filter, unix.EACCES, nil, ""},
		{"nothing at all", Security{}, unix.EPERM, nil, ""},
		{"another error", apparmor, unix.EINVAL, nil, ""},
	} {
		got := c.s.Explain(c.errno)
		if len(c.want) == 0 && got != "" || c.not != "" && strings.Contains(got, c.not) {
			t.Errorf("%s: %q", c.name, got)
		}
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", c.name, got, w)
			}
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add("docker-default (enforce)\n")
	f.Add("system_u:system_r:container_t:s0:c1,c2\x00")
	f.Fuzz(func(t *testing.T, s string) {
		l := parseLabel(s)
		if l.AppArmor != "" && l.SELinux != "" || strings.ContainsAny(l.AppArmor+l.SELinux, "\x1b\n\x00") {
			t.Errorf("%q: %+v", s, l)
		}
	})
}
