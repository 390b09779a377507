package doctor

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// settings are all that a setting can say, alone and together.
func settings() map[string]setting {
	return map[string]setting{
		"privileged": {privileged: true},
		"userns":     {root: true, caps: []string{"SETUID", "SETFCAP"}, unconfined: true, unlabelled: true, hostUsers: true},
		"unmasked":   {unmasked: true},
		"volume":     {volume: "/var/lib/den"},
		"odd volume": {volume: "/a \"b\"\\c: {d}\u00fc\U0001f4a9'\n#"},
		"tmpfs":      {tmpfs: "/tmp/den"},
		"sized":      {tmpfs: "/tmp/den", tmpfsSize: "8g"},
		"memory":     {memory: "2g"},
		"pids":       {pids: 2048},
		"sysctl":     {sysctl: "net.ipv4.ip_forward=1"},
		"cgroups 1":  {cgroups: "v1"},
		"cgroups 2":  {cgroups: "v2"},
		"all":        {privileged: true, root: true, caps: []string{"CHOWN"}, unconfined: true, unmasked: true, volume: "/v", memory: "1g", pids: 1},
	}
}

func TestEveryLineParses(t *testing.T) {
	for name, s := range settings() {
		f := s.fix()
		for _, line := range append(append([]string{}, f.Compose...), f.Kubernetes...) {
			var v map[string]any
			if err := yaml.Unmarshal([]byte(line), &v); err != nil || len(v) != 1 || strings.Contains(line, "\n") {
				t.Errorf("%s: %q is not one line of YAML: %v, %v", name, line, v, err)
			}
		}
		for _, line := range f.GitLab {
			var v map[string]any
			if err := toml.Unmarshal([]byte(line), &v); err != nil || len(v) != 1 || strings.Contains(line, "\n") {
				t.Errorf("%s: %q is not one line of TOML: %v, %v", name, line, v, err)
			}
		}
	}
}

// The lines of one tool can stand together in one file.
func TestLinesOfATableDoNotRepeatAKey(t *testing.T) {
	for name, s := range settings() {
		f := s.fix()
		var v map[string]any
		if err := toml.Unmarshal([]byte(strings.Join(f.GitLab, "\n")), &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var service, pod []string
		for _, line := range f.Compose {
			if strings.HasSuffix(line, "# of the service") {
				service = append(service, line)
			}
		}
		for _, line := range f.Kubernetes {
			if strings.HasSuffix(line, "# of the container") {
				pod = append(pod, line)
			}
		}
		for _, lines := range [][]string{service, pod} {
			if err := yaml.Unmarshal([]byte(strings.Join(lines, "\n")), &v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestLinesMeanTheSameToEachTool(t *testing.T) {
	for name, want := range map[string]Fix{
		"sysctl": {
			Docker:     "--sysctl net.ipv4.ip_forward=1",
			Compose:    []string{"sysctls: [net.ipv4.ip_forward=1]  # of the service"},
			Kubernetes: []string{`securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: "1"}]}  # of the pod`},
			GitLab:     []string{`sysctls = {"net.ipv4.ip_forward" = "1"}  # in [runners.docker]`},
		},
		"userns": {
			Docker:     "--user 0 --cap-add SETUID --cap-add SETFCAP --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt label=disable",
			Compose:    []string{`user: "0"  # of the service`, "cap_add: [SETUID, SETFCAP]  # of the service", "security_opt: [seccomp=unconfined, apparmor=unconfined, label=disable]  # of the service"},
			Kubernetes: []string{"securityContext: {runAsUser: 0, runAsNonRoot: false, capabilities: {add: [SETUID, SETFCAP]}, seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}, seLinuxOptions: {type: spc_t}}  # of the container", "hostUsers: false  # of the pod"},
			GitLab:     []string{`user = "0"  # in [runners.docker]`, `cap_add = ["SETUID", "SETFCAP"]  # in [runners.docker]`, `security_opt = ["seccomp=unconfined", "apparmor=unconfined", "label=disable"]  # in [runners.docker]`},
		},
		"unmasked": {
			Docker:     "--security-opt systempaths=unconfined",
			Compose:    []string{"security_opt: [systempaths=unconfined]  # of the service"},
			Kubernetes: []string{"securityContext: {procMount: Unmasked}  # of the container", "hostUsers: false  # of the pod"},
		},
		"sized": {
			Docker:     "--tmpfs /tmp/den:exec,mode=1777,size=8g",
			Compose:    []string{`tmpfs: ["/tmp/den:exec,mode=1777,size=8g"]  # of the service`},
			Kubernetes: []string{`volumeMounts: [{name: den, mountPath: "/tmp/den"}]  # of the container`, "volumes: [{name: den, emptyDir: {medium: Memory, sizeLimit: 8Gi}}]  # of the pod"},
			GitLab:     []string{`tmpfs = {"/tmp/den" = "rw,exec,mode=1777,size=8g"}  # in [runners.docker]`},
		},
		"memory": {
			Docker: "--memory 2g", Compose: []string{"mem_limit: 2g  # of the service"},
			Kubernetes: []string{"resources: {limits: {memory: 2Gi}}  # of the container"}, GitLab: []string{`memory = "2g"  # in [runners.docker]`},
		},
		"pids": {
			Docker: "--pids-limit 2048", Compose: []string{"pids_limit: 2048  # of the service"},
			Kubernetes: []string{"podPidsLimit: 2048  # of the node's KubeletConfiguration"},
		},
	} {
		if d := cmp.Diff(want, *settings()[name].fix()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// A directory's name is text in every tool, and no syntax.
func FuzzQuotedDirectory(f *testing.F) {
	f.Add("/var/lib/den")
	f.Add("/a \"b\"\\c: {d}\u00fc\U0001f4a9'\n#")
	f.Fuzz(func(t *testing.T, dir string) {
		s := setting{tmpfs: "/" + dir}
		var y map[string][]string
		if err := yaml.Unmarshal([]byte(s.compose()[0]), &y); err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8("/"+dir, "\ufffd") + ":exec,mode=1777"; strings.Count(dir, "\ufffd") == 0 && len(dir) == len(strings.ToValidUTF8(dir, "")) && y["tmpfs"][0] != want {
			t.Errorf("YAML: %q, want %q", y["tmpfs"][0], want)
		}
		var m map[string]map[string]string
		if err := toml.Unmarshal([]byte(s.gitlab()[0]), &m); err != nil || len(m["tmpfs"]) != 1 {
			t.Fatalf("%q: %v, %v", s.gitlab()[0], m, err)
		}
	})
}
