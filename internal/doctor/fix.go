package doctor

import (
	"fmt"
	"strings"
)

// A Fix is what to add to the configuration of the outer container, each as exact
// lines. A tool that is missing has no line for it. Lines of Compose and
// Kubernetes are YAML, those of GitLab Runner's config.toml TOML; a comment at the end
// says where they belong.
type Fix struct {
	// Docker are flags for docker run.
	Docker     string   `json:"docker,omitempty"`
	Compose    []string `json:"compose,omitempty"`
	Kubernetes []string `json:"kubernetes,omitempty"`
	GitLab     []string `json:"gitlab,omitempty"`
	// Machine are commands for root on the machine, Den commands of den.
	Machine []string `json:"machine,omitempty"`
	Den     []string `json:"den,omitempty"`
}

// A setting is what the outer container has to be given. Flags of docker run that
// come last win, so that a setting can be added to any command.
type setting struct {
	privileged bool
	root       bool     // user 0
	caps       []string // without CAP_
	unconfined bool     // no seccomp filter, no AppArmor profile
	unlabelled bool     // no SELinux label
	unmasked   bool     // all of /proc
	hostUsers  bool     // Kubernetes: a user namespace for the pod, which unmasked needs
	volume     string   // a volume at this directory
	tmpfs      string   // a tmpfs at this directory
	tmpfsSize  string   // of the tmpfs, as "8g"
	memory     string   // as "2g"
	pids       int
	sysctl     string // a kernel setting of its own, as name=value
	cgroups    string // how a cgroup can be written: "v1", "v2"
	machine    []string
	den        []string
}

// fix is the setting in the words of each tool.
func (s setting) fix() *Fix {
	return &Fix{Docker: s.docker(), Compose: s.compose(), Kubernetes: s.kubernetes(), GitLab: s.gitlab(), Machine: s.machine, Den: s.den}
}

// securityOpts are docker's --security-opt that the daemon, and not only the
// command line, understands.
func (s setting) securityOpts() []string {
	var o []string
	if s.unconfined {
		o = append(o, "seccomp=unconfined", "apparmor=unconfined")
	}
	if s.unlabelled {
		o = append(o, "label=disable")
	}
	return o
}

func (s setting) docker() string {
	var f []string
	if s.privileged {
		f = append(f, "--privileged")
	}
	if s.root {
		f = append(f, "--user 0")
	}
	for _, c := range s.caps {
		f = append(f, "--cap-add "+c)
	}
	opts := s.securityOpts()
	if s.unmasked {
		opts = append(opts, "systempaths=unconfined")
	}
	if s.cgroups == "v2" {
		opts = append(opts, "writable-cgroups=true")
	}
	for _, o := range opts {
		f = append(f, "--security-opt "+o)
	}
	switch {
	case s.volume != "":
		f = append(f, "-v den:"+shellWord(s.volume))
	case s.tmpfs != "":
		f = append(f, "--tmpfs "+shellWord(s.tmpfs+":"+s.tmpfsOptions()))
	}
	if s.cgroups == "v1" {
		f = append(f, "-v /sys/fs/cgroup:/sys/fs/cgroup:rw")
	}
	if s.memory != "" {
		f = append(f, "--memory "+s.memory)
	}
	if s.pids != 0 {
		f = append(f, fmt.Sprintf("--pids-limit %d", s.pids))
	}
	if s.sysctl != "" {
		f = append(f, "--sysctl "+s.sysctl)
	}
	return strings.Join(f, " ")
}

// tmpfsOptions are docker's: a tmpfs is noexec unless it says otherwise, and 1777
// lets every user have a store there.
func (s setting) tmpfsOptions() string {
	if s.tmpfsSize != "" {
		return "exec,mode=1777,size=" + s.tmpfsSize
	}
	return "exec,mode=1777"
}

func (s setting) compose() []string {
	const service = "  # of the service"
	var l []string
	add := func(format string, args ...any) { l = append(l, fmt.Sprintf(format, args...)+service) }
	if s.privileged {
		add("privileged: true")
	}
	if s.root {
		add(`user: "0"`)
	}
	if len(s.caps) > 0 {
		add("cap_add: [%s]", strings.Join(s.caps, ", "))
	}
	opts := s.securityOpts()
	if s.unmasked {
		opts = append(opts, "systempaths=unconfined")
	}
	if s.cgroups == "v2" {
		opts = append(opts, "writable-cgroups=true")
	}
	if len(opts) > 0 {
		add("security_opt: [%s]", strings.Join(opts, ", "))
	}
	if s.memory != "" {
		add("mem_limit: %s", s.memory)
	}
	if s.pids != 0 {
		add("pids_limit: %d", s.pids)
	}
	if s.sysctl != "" {
		add("sysctls: [%s]", s.sysctl)
	}
	switch {
	case s.volume != "":
		add("volumes: [%s]", quote("den:"+s.volume))
		l = append(l, "volumes: {den: {}}  # at the top")
	case s.tmpfs != "":
		add("tmpfs: [%s]", quote(s.tmpfs+":"+s.tmpfsOptions()))
	}
	if s.cgroups == "v1" {
		add(`volumes: ["/sys/fs/cgroup:/sys/fs/cgroup:rw"]`)
	}
	return l
}

func (s setting) kubernetes() []string {
	const container, pod = "  # of the container", "  # of the pod"
	var l, context []string
	if s.privileged {
		context = append(context, "privileged: true")
	}
	if s.root {
		context = append(context, "runAsUser: 0", "runAsNonRoot: false")
	}
	if len(s.caps) > 0 {
		context = append(context, "capabilities: {add: ["+strings.Join(s.caps, ", ")+"]}")
	}
	if s.unconfined {
		context = append(context, "seccompProfile: {type: Unconfined}", "appArmorProfile: {type: Unconfined}")
	}
	if s.unlabelled {
		context = append(context, "seLinuxOptions: {type: spc_t}")
	}
	if s.unmasked {
		context = append(context, "procMount: Unmasked")
	}
	if len(context) > 0 {
		l = append(l, "securityContext: {"+strings.Join(context, ", ")+"}"+container)
	}
	if s.hostUsers || s.unmasked {
		l = append(l, "hostUsers: false"+pod)
	}
	if s.memory != "" {
		l = append(l, "resources: {limits: {memory: "+strings.ToUpper(s.memory)+"i}}"+container)
	}
	if name, value, ok := strings.Cut(s.sysctl, "="); ok {
		l = append(l, "securityContext: {sysctls: [{name: "+name+", value: "+quote(value)+"}]}"+pod)
	}
	if s.pids != 0 {
		l = append(l, fmt.Sprintf("podPidsLimit: %d  # of the node's KubeletConfiguration", s.pids))
	}
	if dir := s.volume + s.tmpfs; dir != "" {
		volume := "emptyDir: {}"
		if s.tmpfsSize != "" {
			volume = "emptyDir: {medium: Memory, sizeLimit: " + strings.ToUpper(s.tmpfsSize) + "i}"
		}
		l = append(l, "volumeMounts: [{name: den, mountPath: "+quote(dir)+"}]"+container, "volumes: [{name: den, "+volume+"}]"+pod)
	}
	return l
}

// gitlab leaves out what config.toml has no word for: paths of /proc, writable
// cgroups of version 2, the number of processes.
func (s setting) gitlab() []string {
	const section = "  # in [runners.docker]"
	if s.unmasked || s.cgroups == "v2" {
		return nil
	}
	var l []string
	add := func(format string, args ...any) { l = append(l, fmt.Sprintf(format, args...)+section) }
	if s.privileged {
		add("privileged = true")
	}
	if s.root {
		add(`user = "0"`)
	}
	if len(s.caps) > 0 {
		add("cap_add = [%s]", quoted(s.caps))
	}
	if opts := s.securityOpts(); len(opts) > 0 {
		add("security_opt = [%s]", quoted(opts))
	}
	if s.memory != "" {
		add("memory = %s", quote(s.memory))
	}
	if name, value, ok := strings.Cut(s.sysctl, "="); ok {
		add("sysctls = {%s = %s}", quote(name), quote(value))
	}
	switch {
	case s.volume != "":
		add("volumes = [%s]", quote("den:"+s.volume))
	case s.tmpfs != "":
		add("tmpfs = {%s = %s}", quote(s.tmpfs), quote("rw,"+s.tmpfsOptions()))
	case s.cgroups == "v1":
		add(`volumes = ["/sys/fs/cgroup:/sys/fs/cgroup:rw"]`)
	}
	return l
}

// quote is a string that YAML and TOML both take: JSON's, which both have, with no
// character in it that one of them forbids.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f || r > 0x7e:
			if r > 0xffff {
				fmt.Fprintf(&b, `\U%08x`, r)
				continue
			}
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quote(s)
	}
	return strings.Join(q, ", ")
}

// shellWord is s as one word of a shell.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/:=,._-+@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
