package probe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// maxLabelBytes bounds what is read of a security module's file; a page is what
// the kernel gives.
const maxLabelBytes = 4096

// Security is what the kernel's security modules and filters confine den to. den
// loads no profile and changes no label: what it starts inherits this.
type Security struct {
	// AppArmor is the profile that is enforced; "" where none is.
	AppArmor string
	// SELinux is the type of the label, as container_t; "" where there is none, or
	// where the policy is known not to be enforced.
	SELinux string
	// Seccomp says that a filter of system calls is in force.
	Seccomp bool
}

// Confinement reads what confines this process, and tries nothing.
func Confinement() Security { return security(os.DirFS("/"), sys.OwnStatus()) }

// security reads the three. A file that is not there, or covered, is a module that
// is not known of.
func security(root fs.FS, st sys.Status) Security {
	read := func(name string) string {
		f, err := root.Open(name)
		if err != nil {
			return ""
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxLabelBytes))
		if err != nil {
			return ""
		}
		return string(b)
	}
	s := parseLabel(read("proc/self/attr/current"))
	if p := parseLabel(read("proc/self/attr/apparmor/current")); p.AppArmor != "" { // stacked modules, Linux 5.8
		s.AppArmor = p.AppArmor
	}
	if strings.TrimSpace(read("sys/fs/selinux/enforce")) == "0" {
		s.SELinux = ""
	}
	if lsm := read("sys/kernel/security/lsm"); lsm != "" {
		s = s.among(strings.Split(strings.TrimSpace(lsm), ","))
	}
	s.Seccomp = st.Seccomp == 2
	return s
}

// among drops what is not of the modules that the kernel runs.
func (s Security) among(modules []string) Security {
	var apparmor, selinux bool
	for _, m := range modules {
		apparmor = apparmor || m == "apparmor"
		selinux = selinux || m == "selinux"
	}
	if !apparmor {
		s.AppArmor = ""
	}
	if !selinux {
		s.SELinux = ""
	}
	return s
}

// parseLabel reads /proc/self/attr/current: "docker-default (enforce)" of
// AppArmor, "system_u:system_r:container_t:s0:c1,c2" of SELinux. Profiles that only
// complain, and types that are confined by nothing, are no labels.
func parseLabel(text string) Security {
	text = strings.TrimRight(text, "\x00\n ")
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Security{}
	}
	if profile, ok := strings.CutSuffix(text, " (enforce)"); ok {
		return Security{AppArmor: profile}
	}
	if strings.HasSuffix(text, ")") || text == "unconfined" { // (complain), (unconfined), (kill) is for stricter ones
		if profile, ok := strings.CutSuffix(text, " (kill)"); ok {
			return Security{AppArmor: profile}
		}
		return Security{}
	}
	if parts := strings.SplitN(text, ":", 4); len(parts) >= 3 {
		switch parts[2] {
		case "", "unconfined_t", "spc_t", "kernel_t":
			return Security{}
		}
		return Security{SELinux: parts[2]}
	}
	return Security{}
}

// Explain says what forbids a call with which the capabilities had no quarrel, and what
// lifts it; "" where the modules have nothing to do with it. AppArmor and
// SELinux refuse with EACCES, and AppArmor also with EPERM; a seccomp filter with EPERM
// or ENOSYS.
func (s Security) Explain(errno unix.Errno) string {
	denied := errors.Is(errno, unix.EACCES)
	if !denied && errno != unix.EPERM {
		return ""
	}
	var by []string
	if s.AppArmor != "" {
		by = append(by, fmt.Sprintf("the AppArmor profile %s: docker run --security-opt apparmor=unconfined (Kubernetes appArmorProfile: {type: Unconfined})", s.AppArmor))
	}
	if s.SELinux != "" && denied {
		by = append(by, fmt.Sprintf("the SELinux policy for %s: docker run --security-opt label=disable (Kubernetes seLinuxOptions: {type: spc_t})", s.SELinux))
	}
	if s.Seccomp && !denied {
		by = append(by, "the seccomp profile: docker run --security-opt seccomp=unconfined (Kubernetes seccompProfile: {type: Unconfined})")
	}
	if len(by) == 0 {
		return ""
	}
	return "it is forbidden by " + strings.Join(by, ", or by ")
}
