package dockerd_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"den/internal/dockerd"
)

type taken struct {
	hosts, dns, pools, ulimits, mirrors, logs []string
	mtu                                       int
	live                                      bool
}

func flags(t *testing.T, args ...string) (*pflag.FlagSet, *taken) {
	t.Helper()
	var x taken
	f := pflag.NewFlagSet("dockerd", pflag.ContinueOnError)
	f.StringArrayVarP(&x.hosts, "host", "H", nil, "")
	f.StringArrayVar(&x.dns, "dns", nil, "")
	f.StringArrayVar(&x.pools, "default-address-pool", nil, "")
	f.StringArrayVar(&x.ulimits, "default-ulimit", nil, "")
	f.StringArrayVar(&x.mirrors, "registry-mirror", nil, "")
	f.StringArrayVar(&x.logs, "log-opt", nil, "")
	f.IntVar(&x.mtu, "mtu", 0, "")
	f.BoolVar(&x.live, "live-restore", false, "")
	f.String("config-file", "", "")
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f, &x
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFileIsReadIntoFlags(t *testing.T) {
	f, x := flags(t, "--mtu", "1400")
	err := dockerd.MergeFile(f, file(t, `{"hosts": ["unix:///a", "tcp://b:1"], "dns": ["1.1.1.1"], "live-restore": true,
		"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}], "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 20, "Soft": 10}},
		"registry-mirrors": ["https://m"], "builder": {"gc": {"enabled": true}}, "log-opts": {"max-size": "10m", "max-file": "3"}}`), true)
	if err != nil {
		t.Fatal(err)
	}
	want := taken{
		hosts: []string{"unix:///a", "tcp://b:1"}, dns: []string{"1.1.1.1"}, pools: []string{"base=10.0.0.0/8,size=24"},
		ulimits: []string{"nofile=10:20"}, logs: []string{"max-file=3", "max-size=10m"}, mtu: 1400, live: true,
	}
	if !reflect.DeepEqual(*x, want) {
		t.Errorf("%+v, want %+v", *x, want)
	}
}

func TestFileIsRefusedInDockerdsWords(t *testing.T) {
	for text, want := range map[string]string{
		`{"hosts": ["tcp://x:1"], "mtu": 2}`:  "the following directives are specified both as a flag and in the configuration file: hosts: (from flag: [unix:///a], from file: [tcp://x:1])",
		`{"registry-mirrors": ["https://m"]}`: "registry-mirrors: (from flag: [https://n], from file: [https://m])",
		`{"nonsense": 1, "also": 2}`:          "the following directives don't match any configuration option: also, nonsense",
		`{"config-file": "x"}`:                "don't match any configuration option: config-file",
		`{"mtu": "much"}`:                     `mtu: "much"`,
		`{"mtu": 1`:                           "invalid JSON",
		`{} {}`:                               "invalid JSON",
		`[]`:                                  "invalid JSON",
		strings.Repeat(" ", 1<<20) + `{}`:     "longer than",
	} {
		f, _ := flags(t, "-H", "unix:///a", "--registry-mirror", "https://n")
		name := file(t, text)
		err := dockerd.MergeFile(f, name, true)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "unable to configure the Docker daemon with file "+name+": ") {
			t.Errorf("%.40s: %v, want %s", text, err, want)
		}
	}
	f, _ := flags(t)
	if err := dockerd.MergeFile(f, "/nonexistent/daemon.json", false); err != nil {
		t.Errorf("a file that nobody named: %v", err)
	}
	if err := dockerd.MergeFile(f, "/nonexistent/daemon.json", true); err == nil {
		t.Error("a file that was named and is not there: no error")
	}
	if err := dockerd.MergeFile(f, file(t, "\xef\xbb\xbf \n"), true); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func FuzzMergeFile(f *testing.F) {
	for _, s := range []string{`{"hosts":["a"]}`, `{"default-ulimits":{"a":{"Hard":1}}}`, `{"mtu":1e9}`, `{"dns":{"a":[{}]}}`, `null`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, _ := flags(t)
		_ = dockerd.MergeFile(set, file(t, text), true) // no panic, whatever it says
	})
}

func surrounding(uid int, env map[string]string, there ...string) dockerd.Surrounding {
	return dockerd.Surrounding{
		Env: func(name string) string { return env[name] }, SocketDir: func(string) bool { return uid == 0 }, UID: uid,
		Socket: func(path string) bool { return slices.Contains(there, path) }, Commands: []string{"info", "ps"},
	}
}

func TestDataIsWhereDockersIsForWhoMayWriteThere(t *testing.T) {
	env := func(name string) string { return map[string]string{"HOME": "/home/u"}[name] }
	for _, c := range []struct {
		uid      int
		writable bool
		want     string
	}{{0, false, "/var/lib/docker"}, {1000, true, "/var/lib/docker"}, {1000, false, "/home/u/.local/share/docker"}} {
		if got := dockerd.DefaultDataRoot(c.uid, env, func(dir string) bool { return c.writable && dir == "/var/lib/docker" }); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestEntryPointIsThatOfDind(t *testing.T) {
	const sock = "--host=unix:///var/run/docker.sock"
	for name, c := range map[string]struct {
		program string
		args    []string
		uid     int
		env     map[string]string
		there   []string
		want    dockerd.Start
	}{
		"plain":        {dockerd.Entrypoint, nil, 0, nil, nil, dockerd.Start{Program: "dockerd", Args: []string{sock, "--host=tcp://0.0.0.0:2375", "--tls=false"}}},
		"flags":        {dockerd.Entrypoint, []string{"--mtu=1400"}, 0, nil, nil, dockerd.Start{Program: "dockerd", Args: []string{sock, "--host=tcp://0.0.0.0:2375", "--tls=false", "--mtu=1400"}}},
		"TLS":          {dockerd.Entrypoint, nil, 0, map[string]string{"DOCKER_TLS_CERTDIR": "/certs"}, nil, dockerd.Start{Program: "dockerd", Args: []string{sock, "--host=tcp://0.0.0.0:2376", "--tlsverify"}, CertDir: "/certs", Refuse: "tcp://0.0.0.0:2375"}},
		"GitHub":       {dockerd.Entrypoint, []string{"dockerd", "--host=unix:///x", "--group=123"}, 0, nil, nil, dockerd.Start{Program: "dockerd", Args: []string{"--host=unix:///x", "--group=123"}}},
		"leaked host":  {dockerd.Entrypoint, []string{"-D"}, 0, map[string]string{"DOCKER_HOST": "tcp://docker:2375"}, nil, dockerd.Start{Program: "dockerd", Args: []string{sock, "--host=tcp://0.0.0.0:2375", "--tls=false", "-D"}}},
		"own host":     {dockerd.Entrypoint, nil, 0, map[string]string{"DOCKER_HOST": "unix:///y"}, nil, dockerd.Start{Program: "dockerd", Args: []string{"--host=unix:///y", "--host=tcp://0.0.0.0:2375", "--tls=false"}}},
		"plain user":   {dockerd.Entrypoint, nil, 1000, map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, nil, dockerd.Start{Program: "dockerd", Args: []string{"--host=unix:///run/user/1000/docker.sock", "--host=tcp://0.0.0.0:2375", "--tls=false"}}},
		"other":        {dockerd.Entrypoint, []string{"sh", "-c", "x"}, 0, nil, []string{"/var/run/docker.sock"}, dockerd.Start{Program: "sh", Args: []string{"-c", "x"}, Env: []string{"DOCKER_HOST=unix:///var/run/docker.sock"}}},
		"command":      {dockerd.Client, []string{"ps", "-a"}, 0, map[string]string{"DOCKER_HOST": "tcp://a:1"}, nil, dockerd.Start{Program: "docker", Args: []string{"ps", "-a"}}},
		"client, TLS":  {dockerd.Client, []string{"x"}, 0, map[string]string{"DOCKER_TLS_CERTDIR": "/certs"}, []string{"/certs/client/cert.pem"}, dockerd.Start{Program: "x", Args: []string{}, Env: []string{"DOCKER_HOST=tcp://docker:2376", "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=/certs/client"}}},
		"client, none": {dockerd.Client, nil, 0, nil, nil, dockerd.Start{Program: "sh", Env: []string{"DOCKER_HOST=tcp://docker:2375"}}},
		"wrapper":      {dockerd.Wrapper, []string{"docker-init", "--", "dockerd"}, 0, nil, nil, dockerd.Start{Program: "docker-init", Args: []string{"--", "dockerd"}}},
	} {
		if got := dockerd.Begin(c.program, c.args, surrounding(c.uid, c.env, c.there...)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
