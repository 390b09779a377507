package dockerapi

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"

	"den/internal/engine"
	"den/internal/network"
	"den/internal/oci"
)

func body(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/create/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// created sends a body to create and returns what the engine was asked for.
func created(t *testing.T, target, body string) *engine.CreateRequest {
	t.Helper()
	f := &fake{}
	resp, text := ask(t, New(Options{Engine: f, SocketPath: "/run/den/docker.sock"}), "POST", target, body)
	if resp.StatusCode != 201 {
		t.Fatalf("%s: status %d, %s", body, resp.StatusCode, text)
	}
	f.created.Door = nil
	return f.created
}

var requests = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func TestCreateTakesZerosForUnset(t *testing.T) {
	got := created(t, "/v1.50/containers/create", body(t, "run"))
	want := &engine.CreateRequest{
		RunRequest: engine.RunRequest{
			Image: "busybox", Args: []string{"echo", "hi"}, ShmBytes: 64 << 20, Remove: true,
		},
		NetworkMode:  "bridge",
		Endpoints:    []network.EndpointRequest{{Network: "bridge"}},
		AttachStdout: true, AttachStderr: true,
		LogConfig: engine.LogConfig{Driver: "json-file"},
	}
	if diff := cmp.Diff(want, got, requests); diff != "" {
		t.Error(diff)
	}
}

func TestCreateTranslatesEverything(t *testing.T) {
	got := created(t, "/v1.50/containers/create?name=c1&platform=linux%2Famd64", body(t, "everything"))
	three := 3
	want := &engine.CreateRequest{
		RunRequest: engine.RunRequest{
			Image: "busybox", Name: "c1", Platform: &oci.Platform{OS: "linux", Architecture: "amd64"},
			Args: []string{"sleep", "1"}, User: "0:0", Env: []string{"A=1"}, Labels: map[string]string{"k": "v"},
			Hostname: "hh", AddHosts: []string{"h:1.2.3.4"}, DNS: []string{"1.1.1.1"},
			Mounts: []engine.Mount{
				{Kind: engine.MountBind, Source: "/r/w", Target: "/b", ReadOnly: true, CreateSource: true},
				{Kind: engine.MountVolume, Source: "vol1", Target: "/v"},
				{Kind: engine.MountVolume, Target: "/anon"},
				{Kind: engine.MountBind, Source: "/x", Target: "/y", Options: []string{"rslave"}},
				{Kind: engine.MountTmpfs, Target: "/t", Options: []string{"size=1m"}},
			},
			ShmBytes: 64 << 20,
			Limits:   engine.Limits{MemoryBytes: 96 << 20, MemorySwapBytes: 192 << 20, CPUs: 1.5, Pids: 10},
			Ulimits:  []engine.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}},
			CapAdd:   []string{"CAP_NET_ADMIN"}, Security: []string{"systempaths=unconfined"},
			Init: true, StopSeconds: &three, TTY: true, OpenStdin: true,
		},
		NetworkMode: "n1",
		Endpoints: []network.EndpointRequest{{
			Network: "n1", Aliases: []string{"al"}, IPv4: netip.MustParseAddr("10.77.0.9"),
			MAC: net.HardwareAddr{2, 0x42, 0xac, 0x11, 0, 2}, Links: map[string]string{"b": "a"},
		}},
		Exposed: []string{"80/tcp", "81/udp", "9000/tcp", "9001/tcp"},
		Ports: []network.Port{
			{Protocol: "tcp", Container: 80, Host: 8080},
			{Protocol: "udp", Container: 81, HostIP: netip.MustParseAddr("127.0.0.1")},
			{Protocol: "tcp", Container: 9000, Host: 9000},
			{Protocol: "tcp", Container: 9001, Host: 9001},
		},
		Links:       []string{"a:b"},
		Restart:     engine.RestartPolicy{Name: "on-failure", Max: 2},
		Health:      &engine.HealthCheck{Test: []string{"CMD-SHELL", "true"}, Interval: time.Second},
		LogConfig:   engine.LogConfig{Driver: "json-file", MaxBytes: 10_000_000},
		AttachStdin: true, AttachStdout: true, AttachStderr: true, StdinOnce: true,
	}
	if diff := cmp.Diff(want, got, requests); diff != "" {
		t.Error(diff)
	}
}

func TestCreateRefusesWithASentence(t *testing.T) {
	s := New(Options{Engine: &fake{}})
	for _, tt := range []struct {
		body, want string
		status     int
	}{
		{body(t, "gpus"), "den hands no GPUs to containers", 400},
		{`{"Image":"a","HostConfig":{"Privileged":true}}`, "run den in place of docker:dind", 400},
		{`{}`, "config cannot be empty", 400},
		{`null`, "config cannot be empty", 400},
		{``, "config cannot be empty", 400},
		{`[]`, "invalid JSON", 400},
		{`{"Image":1}`, "invalid JSON: json: cannot unmarshal number", 400},
		{`{"Image":"a","Env":["=x"]}`, "invalid environment variable: =x", 400},
		{`{"Image":"a","WorkingDir":"x"}`, "needs to be an absolute path", 400},
		{`{"Image":"a","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}`, "can't create 'AutoRemove' container with restart policy", 400},
		{`{"Image":"a","HostConfig":{"RestartPolicy":{"Name":"sometimes"}}}`, "unknown policy 'sometimes'", 400},
		{`{"Image":"a","HostConfig":{"RestartPolicy":{"Name":"always","MaximumRetryCount":2}}}`, "maximum retry count can only be used with 'on-failure'", 400},
		{`{"Image":"a","HostConfig":{"Binds":["a:b:c:d"]}}`, "invalid volume specification: 'a:b:c:d'", 400},
		{`{"Image":"a","HostConfig":{"Binds":["/a::ro"]}}`, "invalid volume specification", 400},
		{`{"Image":"a","HostConfig":{"Binds":["/a:/"]}}`, "destination can't be '/'", 400},
		{`{"Image":"a","HostConfig":{"Binds":["/a:/b/.."]}}`, "destination can't be '/'", 400},
		{`{"Image":"a","HostConfig":{"Binds":["/a:b"]}}`, "mount path must be absolute", 400},
		{`{"Image":"a","HostConfig":{"Binds":["../a:/b"]}}`, "includes invalid characters for a local volume name", 400},
		{`{"Image":"a","HostConfig":{"Binds":["/a:/b:rx"]}}`, "invalid mode: rx", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","Target":"/b"}]}}`, "field Source must not be empty", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","Source":"a","Target":"/b"}]}}`, "mount path must be absolute", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"tmpfs","Source":"a","Target":"/b"}]}}`, "field Source must not be specified", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"volume","Target":"/b","BindOptions":{}}]}}`, "field BindOptions must not be specified", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"what","Target":"/b"}]}}`, `mount type unknown: "what"`, 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"image","Source":"b","Target":"/b"}]}}`, "does not mount images", 400},
		{`{"Image":"a","HostConfig":{"Mounts":[{"Type":"volume","Source":"vol","Target":"/b","VolumeOptions":{"DriverConfig":{"Name":"nfs"}}}]}}`, `plugin "nfs" not found`, 404},
		{`{"Image":"a","HostConfig":{"VolumeDriver":"nfs"}}`, `plugin "nfs" not found`, 404},
		{`{"Image":"a","HostConfig":{"LogConfig":{"Type":"syslog"}}}`, "no log driver named 'syslog' is registered", 400},
		{`{"Image":"a","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"max-size":"x"}}}}`, "invalid log opt max-size", 400},
		{`{"Image":"a","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"max-file":"0"}}}}`, "max-file cannot be less than 1", 400},
		{`{"Image":"a","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"what":"0"}}}}`, "unknown log opt 'what'", 400},
		{`{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}}`, "invalid port specification", 400},
		{`{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"10-5"}]}}}`, "invalid range of ports", 400},
		{`{"Image":"a","HostConfig":{"PortBindings":{"99999/tcp":[]}}}`, "invalid JSON", 400},
		{`{"Image":"a","HostConfig":{"PortBindings":{"80/sctp":[]}}}`, "den publishes tcp and udp ports", 400},
		{`{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"x"}]}}}`, "invalid JSON", 400},
		{`{"Image":"a","HostConfig":{"NetworkMode":"container:x","PortBindings":{"80/tcp":[]}}}`, "port publishing and the container type network mode", 400},
		{`{"Image":"a","HostConfig":{"IpcMode":"x"}}`, "invalid IPC mode: x", 400},
		{`{"Image":"a","HostConfig":{"PidMode":"x"}}`, "invalid PID mode: x", 400},
		{`{"Image":"a","HostConfig":{"Isolation":"hyperv"}}`, `invalid isolation "hyperv" on linux`, 400},
		{`{"Image":"a","HostConfig":{"Runtime":"nvidia"}}`, "unknown or invalid runtime name: nvidia", 400},
		{`{"Image":"a","HostConfig":{"NanoCpus":1,"CpuQuota":1}}`, "cannot both be set", 400},
		{`{"Image":"a","HostConfig":{"Memory":-5}}`, "must not be negative", 400},
		{`{"Image":"a","Healthcheck":{"Test":["x"]}}`, `Unknown healthcheck type "x"`, 400},
		{`{"Image":"a","Healthcheck":{"Interval":1}}`, "Interval in Healthcheck cannot be less than 1ms", 400},
		{`{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv4Address":"::1"}}}}}`, "invalid IPv4 address", 400},
		{`{"Image":"a","MacAddress":"x"}`, "invalid MAC address: x", 400},
	} {
		resp, text := ask(t, s, "POST", "/v1.44/containers/create", tt.body)
		if resp.StatusCode != tt.status || !strings.Contains(message(t, text), tt.want) {
			t.Errorf("%.80s: status %d, %s; want %d and %q", tt.body, resp.StatusCode, text, tt.status, tt.want)
		}
	}
	if resp, text := ask(t, s, "POST", "/containers/create?platform=a/b/c/d", `{"Image":"a"}`); resp.StatusCode != 400 {
		t.Errorf("platform: status %d, %s", resp.StatusCode, text)
	}
	if resp, text := ask(t, s, "POST", "/v1.43/containers/create", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"n":{},"m":{}}}}`); resp.StatusCode != 400 || !strings.Contains(text, "network endpoints: m, n") {
		t.Errorf("two endpoints: status %d, %s", resp.StatusCode, text)
	}
}

func TestPrivilegedByHabitIsServedWithout(t *testing.T) {
	s := New(Options{Engine: &fake{}})
	for _, b := range []string{
		`{"Image":"testcontainers/ryuk:0.11.0","HostConfig":{"Privileged":true}}`,
		`{"Image":"docker.io/testcontainers/ryuk@sha256:aa","HostConfig":{"Privileged":true}}`,
		`{"Image":"mirror:5000/x/testcontainers/ryuk","HostConfig":{"Privileged":true}}`,
		`{"Image":"x","Labels":{"org.testcontainers.ryuk":"true"},"HostConfig":{"Privileged":true}}`,
		`{"Image":"tonistiigi/binfmt:latest","HostConfig":{"Privileged":true}}`,
	} {
		resp, text := ask(t, s, "POST", "/containers/create", b)
		if resp.StatusCode != 201 || !strings.Contains(text, "--privileged is not in force") {
			t.Errorf("%s: status %d, %s", b, resp.StatusCode, text)
		}
	}
}

func TestDockersSocketIsThisServers(t *testing.T) {
	for source, want := range map[string]string{
		"/var/run/docker.sock":        "/run/den/docker.sock",
		"/run/docker.sock":            "/run/den/docker.sock",
		"/run/den/../den/docker.sock": "/run/den/docker.sock",
		"/tmp/docker.sock":            "/tmp/docker.sock",
	} {
		got := created(t, "/containers/create", `{"Image":"a","HostConfig":{"Binds":["`+source+`:/var/run/docker.sock:rw"]}}`).Mounts
		if len(got) != 1 || got[0].Source != want || got[0].CreateSource == (want == "/run/den/docker.sock") {
			t.Errorf("%s: %+v", source, got)
		}
	}
}

func TestVolumeMountsSayWhatTheirVolumeIs(t *testing.T) {
	got := created(t, "/containers/create", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"volume","Source":"data","Target":"/d","VolumeOptions":{"NoCopy":true,"Subpath":"x/y","Labels":{"k":"v"},"DriverConfig":{"Name":"local","Options":{"type":"tmpfs"}}}}]}}`)
	want := []engine.Mount{{
		Kind: engine.MountVolume, Source: "data", Target: "/d", NoCopy: true, Subpath: "x/y",
		Labels: map[string]string{"k": "v"}, DriverOptions: map[string]string{"type": "tmpfs"},
	}}
	if diff := cmp.Diff(want, got.Mounts); diff != "" {
		t.Error(diff)
	}
}

func TestCreateBodiesOfOldClients(t *testing.T) {
	got := created(t, "/v1.24/containers/create", `{"Image":"a","Cmd":"date","Entrypoint":"","MacAddress":"02:42:ac:11:00:02","Volumes":{"/v":{},"/b":{}},"HostConfig":{"Binds":["/x:/b"],"KernelMemory":5}}`)
	if diff := cmp.Diff([]string{"date"}, got.Args); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{""}, got.Entrypoint); diff != "" {
		t.Error(diff)
	}
	if len(got.Endpoints) != 1 || got.Endpoints[0].MAC.String() != "02:42:ac:11:00:02" {
		t.Errorf("endpoints %+v", got.Endpoints)
	}
	if len(got.Mounts) != 2 || got.Mounts[1].Target != "/v" || got.Mounts[1].Kind != engine.MountVolume {
		t.Errorf("mounts %+v", got.Mounts)
	}
	if got.IpcMode != "shareable" {
		t.Errorf("ipc mode %q", got.IpcMode)
	}
}

func FuzzCreateBody(f *testing.F) {
	for _, name := range []string{"run", "everything", "gpus"} {
		data, err := os.ReadFile("testdata/create/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, 50)
	}
	f.Add([]byte(`{"Image":"a","Cmd":"x","HostConfig":{"Binds":["a:/b"],"Tmpfs":{"/t":"ro"}}}`), 24)
	s := New(Options{Engine: &fake{}, SocketPath: "/s"})
	f.Fuzz(func(t *testing.T, data []byte, v int) {
		var b createBody
		if decodeJSON(data, &b) != nil {
			return
		}
		r, _, err := s.createRequest(&b, version(v))
		if err != nil && statusOf(err) >= 500 {
			t.Fatalf("%v is not the client's fault", err)
		}
		if err == nil && len(r.Door) == 0 {
			t.Fatal("nothing is kept for inspect")
		}
	})
}

func TestAClientsOwnBuildKitIsToldHowToBuildWithoutIt(t *testing.T) {
	for _, image := range []string{"moby/buildkit:buildx-stable-1", "registry.example.com/mirror/moby/buildkit@sha256:" + strings.Repeat("0", 64)} {
		resp, text := ask(t, New(Options{Engine: &fake{}}), "POST", "/containers/create", `{"Image":"`+image+`","HostConfig":{"Privileged":true}}`)
		if resp.StatusCode != 400 || !strings.Contains(text, "DOCKER_BUILDKIT=0") {
			t.Errorf("%s: status %d, %s", image, resp.StatusCode, text)
		}
	}
}

func TestLogIsTheServersWhereARequestNamesNone(t *testing.T) {
	usual := container.LogConfig{Type: "none"}
	local := container.LogConfig{Type: "local", Config: map[string]string{"max-size": "1m", "max-file": "2"}}
	for _, c := range []struct {
		server container.LogConfig
		asked  string
		want   engine.LogConfig
	}{
		{container.LogConfig{}, `{}`, engine.LogConfig{Driver: "json-file"}},
		{usual, `{}`, engine.LogConfig{Driver: "none"}},
		{usual, `{"Type":"json-file"}`, engine.LogConfig{Driver: "json-file"}}, // who asks for a log has one
		{local, `{}`, engine.LogConfig{Driver: "local", MaxBytes: 1_000_000, MaxFiles: 2}},
		{local, `{"Type":"local","Config":{"max-file":"7"}}`, engine.LogConfig{Driver: "local", MaxBytes: 1_000_000, MaxFiles: 7}},
		{local, `{"Type":"json-file"}`, engine.LogConfig{Driver: "json-file"}},
	} {
		f := &fake{}
		resp, text := ask(t, New(Options{Engine: f, DefaultLog: c.server}), "POST", "/containers/create", `{"Image":"a","HostConfig":{"LogConfig":`+c.asked+`}}`)
		if resp.StatusCode != 201 || f.created.LogConfig != c.want || !strings.Contains(string(f.created.Door), `"Type":"`+c.want.Driver+`"`) {
			t.Errorf("%+v, %s: status %d, %s, %+v", c.server, c.asked, resp.StatusCode, text, f.created)
		}
	}
}
