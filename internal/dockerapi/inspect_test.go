package dockerapi

import (
	"encoding/json"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/engine"
	"den/internal/network"
)

// example is a running container as the engine describes it, whose creation went
// through the door.
func example(t *testing.T) *engine.Container {
	t.Helper()
	var b createBody
	if err := decodeJSON([]byte(body(t, "everything")), &b); err != nil {
		t.Fatal(err)
	}
	r, _, err := New(Options{}).createRequest(&b, newest)
	if err != nil {
		t.Fatal(err)
	}
	return &engine.Container{
		ID: strings.Repeat("ab", 32), Name: "c1", Request: r, Image: "busybox", ConfigDigest: "sha256:" + "00112233",
		Config: dockerspec.DockerOCIImageConfig{
			ImageConfig: ocispec.ImageConfig{Cmd: []string{"sleep", "1"}, Env: []string{"PATH=/bin", "A=1"}, ExposedPorts: map[string]struct{}{"7000-7001/tcp": {}, "what": {}}},
		},
		Command: []string{"sleep", "1"}, Labels: map[string]string{"k": "v"}, Created: time.Unix(1795212578, 0),
		State: engine.State{Status: "running", Running: true, Pid: 42, Started: time.Unix(1795212579, 0), Health: &engine.Health{Status: "healthy"}},
		Networks: []engine.NetworkEndpoint{{
			NetworkName: "n1",
			Endpoint: network.Endpoint{
				ID: "e1", Network: "n1id", MAC: "02:42:ac:11:00:02", IPv4: netip.MustParsePrefix("10.77.0.9/24"),
				Ports: []network.Port{{Protocol: "tcp", Container: 80, Host: 8080}, {Protocol: "udp", Container: 81, HostIP: netip.MustParseAddr("127.0.0.1"), Host: 32768}},
			},
			Gateway4: "10.77.0.1", Request: r.Endpoints[0],
		}},
		NetworkMode: "n1",
		Mounts:      []engine.MountPoint{{Kind: engine.MountVolume, Name: "vol1", Source: "/s/vol1", Target: "/v"}},
	}
}

// at follows a path of keys into JSON.
func at(t *testing.T, text string, keys ...string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for _, k := range keys {
		if list, ok := v.([]any); ok && len(list) > 0 {
			v = list[0]
		}
		m, _ := v.(map[string]any)
		var ok bool
		if v, ok = m[k]; !ok {
			return "missing"
		}
	}
	return v
}

func TestInspectEchoesWhatWasAskedForAndWhatIs(t *testing.T) {
	s := New(Options{Engine: &fake{containers: []*engine.Container{example(t)}}})
	_, text := ask(t, s, "GET", "/v1.51/containers/c1/json", "")
	for path, want := range map[string]any{
		"Name": "/c1", "Path": "sleep", "Image": "sha256:00112233", "Platform": "linux", "ExecIDs": nil,
		"Created":                                 "2026-11-20T22:09:38Z",
		"State/Status":                            "running",
		"State/Pid":                               42.0,
		"State/Health/Status":                     "healthy",
		"State/FinishedAt":                        "0001-01-01T00:00:00Z",
		"Config/Image":                            "busybox",
		"Config/Hostname":                         "hh",
		"Config/Tty":                              true,
		"Config/StopTimeout":                      3.0,
		"Config/Env":                              []any{"PATH=/bin", "A=1"},
		"Config/ExposedPorts/7001~tcp":            map[string]any{},
		"Config/OnBuild":                          nil,
		"HostConfig/ShmSize":                      float64(64 << 20),
		"HostConfig/Memory":                       float64(96 << 20),
		"HostConfig/MemorySwap":                   float64(192 << 20),
		"HostConfig/MemorySwappiness":             nil,
		"HostConfig/LogConfig/Type":               "json-file",
		"HostConfig/RestartPolicy/Name":           "on-failure",
		"HostConfig/NetworkMode":                  "n1",
		"HostConfig/PidsLimit":                    10.0,
		"HostConfig/Binds":                        []any{"/r/w:/b:ro", "vol1:/v"},
		"HostConfig/IpcMode":                      "private",
		"HostConfig/KernelMemory":                 "missing",
		"Mounts/Name":                             "vol1",
		"Mounts/Driver":                           "local",
		"NetworkSettings/IPAddress":               "",
		"NetworkSettings/Bridge":                  "",
		"NetworkSettings/Networks/n1/IPAddress":   "10.77.0.9",
		"NetworkSettings/Networks/n1/IPPrefixLen": 24.0,
		"NetworkSettings/Networks/n1/Gateway":     "10.77.0.1",
		"NetworkSettings/Networks/n1/MacAddress":  "02:42:ac:11:00:02",
		"NetworkSettings/Networks/n1/Aliases":     []any{"al"},
		"NetworkSettings/Networks/n1/DNSNames":    []any{"c1", "al", "abababababab"},
		"NetworkSettings/Networks/n1/IPAMConfig":  map[string]any{"IPv4Address": "10.77.0.9"},
		"NetworkSettings/Networks/n1/IPv6Gateway": "",
		"NetworkSettings/Ports/7000~tcp":          nil,
		"NetworkSettings/Ports/80~tcp/HostIp":     "0.0.0.0",
		"NetworkSettings/Ports/80~tcp/HostPort":   "8080",
		"NetworkSettings/Ports/81~udp/HostIp":     "127.0.0.1",
		"NetworkSettings/Ports/81~udp/HostPort":   "32768",
		"SizeRw":                                  "missing",
	} {
		keys := strings.Split(path, "/")
		for i := range keys {
			keys[i] = strings.ReplaceAll(keys[i], "~", "/")
		}
		if diff := cmp.Diff(want, at(t, text, keys...)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestInspectShowsWhatDockerShows(t *testing.T) {
	c := example(t)
	door := doorOf(c)
	door.HostConfig.Tmpfs = map[string]string{"/t": ""}
	door.HostConfig.MaskedPaths, door.HostConfig.ReadonlyPaths, door.HostConfig.SecurityOpt = nil, nil, nil
	var err error
	if c.Request.Door, err = json.Marshal(door); err != nil {
		t.Fatal(err)
	}
	c.Mounts = append([]engine.MountPoint{{Kind: engine.MountTmpfs, Target: "/t"}}, c.Mounts...)
	c.Networks[0].Request.MAC = net.HardwareAddr{2, 0x42, 10, 77, 0, 9}
	c.Command = []string{"sh", "-c", "sleep 1"}
	s := New(Options{Engine: &fake{containers: []*engine.Container{c}}})
	_, text := ask(t, s, "GET", "/v1.51/containers/c1/json", "")
	for path, want := range map[string]any{"Mounts/Name": "vol1", "Config/MacAddress": "02:42:0a:4d:00:09"} {
		if diff := cmp.Diff(want, at(t, text, strings.Split(path, "/")...)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	for key, want := range map[string]string{"MaskedPaths": "/proc/kcore", "ReadonlyPaths": "/proc/sys"} {
		if paths, _ := at(t, text, "HostConfig", key).([]any); !slices.Contains(paths, any(want)) {
			t.Errorf("%s: %v", key, paths)
		}
	}
	if _, text = ask(t, s, "GET", "/v1.52/containers/c1/json", ""); at(t, text, "Config", "MacAddress") != "missing" {
		t.Errorf("1.52: %s", text)
	}
	_, text = ask(t, s, "GET", "/containers/json", "")
	for path, want := range map[string]any{"Mounts/Name": "vol1", "Command": "sh -c 'sleep 1'"} {
		if diff := cmp.Diff(want, at(t, text, strings.Split(path, "/")...)); diff != "" {
			t.Errorf("list: %s: %s", path, diff)
		}
	}
}

func TestInspectSpeaksEveryVersionsWords(t *testing.T) {
	c := example(t)
	c.Networks[0].NetworkName = "bridge"
	s := New(Options{Engine: &fake{containers: []*engine.Container{c}}})
	for _, tt := range []struct {
		version, path string
		want          any
	}{
		{"1.41", "HostConfig/KernelMemory", 0.0},
		{"1.42", "HostConfig/KernelMemory", "missing"},
		{"1.51", "NetworkSettings/IPAddress", "10.77.0.9"},
		{"1.51", "NetworkSettings/Gateway", "10.77.0.1"},
		{"1.52", "NetworkSettings/IPAddress", "missing"},
		{"1.52", "Config/OnBuild", "missing"},
	} {
		_, text := ask(t, s, "GET", "/v"+tt.version+"/containers/c1/json", "")
		if diff := cmp.Diff(tt.want, at(t, text, strings.Split(tt.path, "/")...)); diff != "" {
			t.Errorf("%s %s: %s", tt.version, tt.path, diff)
		}
	}
	c.Networks[0].NetworkName = "n1"
	for version, want := range map[string]any{"1.44": []any{"al", "abababababab"}, "1.45": []any{"al"}} {
		_, text := ask(t, s, "GET", "/v"+version+"/containers/c1/json", "")
		if diff := cmp.Diff(want, at(t, text, "NetworkSettings", "Networks", "n1", "Aliases")); diff != "" {
			t.Errorf("%s: %s", version, diff)
		}
	}
}

func TestInspectOfContainersThatNoDoorMade(t *testing.T) {
	for _, r := range []*engine.CreateRequest{nil, {}, {Door: []byte("damaged")}} {
		s := New(Options{Engine: &fake{containers: []*engine.Container{{ID: "ab", Name: "c1", Request: r, Image: "x"}}}})
		resp, text := ask(t, s, "GET", "/containers/c1/json", "")
		if resp.StatusCode != 200 || at(t, text, "Config", "Image") != "x" || at(t, text, "HostConfig", "LogConfig", "Type") != "json-file" {
			t.Errorf("status %d, %s", resp.StatusCode, text)
		}
		if resp, text := ask(t, s, "GET", "/containers/json?all=1", ""); resp.StatusCode != 200 {
			t.Errorf("status %d, %s", resp.StatusCode, text)
		}
	}
}

func TestListFilters(t *testing.T) {
	running := example(t)
	exited := &engine.Container{
		ID: strings.Repeat("cd", 32), Name: "old", Image: "alpine:3", ConfigDigest: "sha256:445566", Created: running.Created.Add(-time.Hour),
		State: engine.State{Status: "exited", ExitCode: 3, Started: time.Unix(1, 0), Finished: time.Unix(2, 0)}, NetworkMode: "host",
	}
	fresh := &engine.Container{ID: strings.Repeat("ef", 32), Name: "new", Image: "alpine", Created: running.Created.Add(time.Hour), State: engine.State{Status: "created"}}
	s := New(Options{Engine: &fake{containers: []*engine.Container{fresh, running, exited}}})
	for _, tt := range []struct{ query, filters, want string }{
		{"", ``, "c1"},
		{"all=1", ``, "new c1 old"},
		{"all=True&limit=2", ``, "new c1"},
		{"limit=1", ``, "new"},
		{"all=1", `{"name":["c"]}`, "c1"},
		{"all=1", `{"name":["^/c1$"]}`, "c1"},
		{"all=1", `{"name":["("]}`, ""},
		{"all=1", `{"id":{"abab":true}}`, "c1"},
		{"", `{"status":["exited","created"]}`, "new old"},
		{"", `{"exited":["3"]}`, "old"},
		{"", `{"exited":["0"]}`, ""},
		{"all=1", `{"health":["healthy"]}`, "c1"},
		{"all=1", `{"health":["none"]}`, "new old"},
		{"all=1", `{"label":["k=v"]}`, "c1"},
		{"all=1", `{"label":["k=w"]}`, ""},
		{"all=1", `{"ancestor":["alpine:3"]}`, "old"},
		{"all=1", `{"ancestor":["alpine"]}`, "new"},
		{"all=1", `{"ancestor":["sha256:4455"]}`, "old"},
		{"all=1", `{"before":["c1"]}`, "old"},
		{"all=1", `{"since":["c1"]}`, "new"},
		{"all=1", `{"volume":["vol1"]}`, "c1"},
		{"all=1", `{"volume":["/v"]}`, "c1"},
		{"all=1", `{"network":["n1"]}`, "c1"},
		{"all=1", `{"network":["host"]}`, "old"},
		{"all=1", `{"publish":["8080"]}`, "c1"},
		{"all=1", `{"publish":["80/udp"]}`, ""},
		{"all=1", `{"expose":["6999-7000/tcp"]}`, "c1"},
		{"all=1", `{"is-task":["false"]}`, "new c1 old"},
		{"all=1", `{"is-task":["true"]}`, ""},
		{"all=1", `{"isolation":["default"]}`, "new c1 old"},
	} {
		resp, text := ask(t, s, "GET", "/containers/json?"+tt.query+"&filters="+url.QueryEscape(tt.filters), "")
		var list []struct{ Names []string }
		if err := json.Unmarshal([]byte(text), &list); err != nil || resp.StatusCode != 200 {
			t.Errorf("%s %s: status %d, %s", tt.query, tt.filters, resp.StatusCode, text)
			continue
		}
		var names []string
		for _, c := range list {
			names = append(names, c.Names[0][1:])
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.query, tt.filters, got, tt.want)
		}
	}
	for filters, status := range map[string]int{
		`{"what":["x"]}`: 400, `{"status":["x"]}`: 400, `{"health":["x"]}`: 400, `{"exited":["x"]}`: 400,
		`{"before":["x"]}`: 404, `{"publish":["x"]}`: 400, `{"is-task":["x"]}`: 400, `x`: 400,
	} {
		if resp, text := ask(t, s, "GET", "/containers/json?filters="+url.QueryEscape(filters), ""); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", filters, resp.StatusCode, text)
		}
	}
}

func TestListShowsWhatPsPrints(t *testing.T) {
	s := New(Options{Engine: &fake{containers: []*engine.Container{example(t)}}})
	_, text := ask(t, s, "GET", "/v1.41/containers/json", "")
	var list []struct {
		ID, Command, Status, State, Image string
		Ports                             []port
		SizeRw                            *int64
		HostConfig                        struct{ NetworkMode string }
		Health                            any
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	c := list[0]
	if !strings.HasSuffix(c.Status, " (healthy)") || !strings.HasPrefix(c.Status, "Up ") || c.Command != "sleep 1" || c.HostConfig.NetworkMode != "n1" || c.SizeRw != nil || c.Health != nil {
		t.Errorf("%+v", c)
	}
	want := []port{
		{IP: "0.0.0.0", PrivatePort: 80, PublicPort: 8080, Type: "tcp"}, {IP: "::", PrivatePort: 80, PublicPort: 8080, Type: "tcp"},
		{IP: "127.0.0.1", PrivatePort: 81, PublicPort: 32768, Type: "udp"},
		{PrivatePort: 7000, Type: "tcp"}, {PrivatePort: 7001, Type: "tcp"}, {PrivatePort: 9000, Type: "tcp"}, {PrivatePort: 9001, Type: "tcp"},
	}
	if diff := cmp.Diff(want, c.Ports); diff != "" {
		t.Error(diff)
	}
}

func TestStatusTexts(t *testing.T) {
	now := time.Unix(1000, 0)
	for want, s := range map[string]engine.State{
		"Up 5 seconds":                    {Status: "running", Started: now.Add(-5 * time.Second)},
		"Up 2 minutes (health: starting)": {Status: "running", Started: now.Add(-2 * time.Minute), Health: &engine.Health{Status: "starting"}},
		"Up 5 seconds (unhealthy)":        {Status: "running", Started: now.Add(-5 * time.Second), Health: &engine.Health{Status: "unhealthy"}},
		"Up 3 hours (Paused)":             {Status: "paused", Started: now.Add(-3 * time.Hour)},
		"Exited (137) 7 seconds ago":      {Status: "exited", ExitCode: 137, Finished: now.Add(-7 * time.Second)},
		"Restarting (1) 2 seconds ago":    {Status: "restarting", ExitCode: 1, Finished: now.Add(-2 * time.Second)},
		"Created":                         {Status: "created"},
		"Dead":                            {Status: "dead"},
		"Removal In Progress":             {Status: "removing"},
	} {
		if got := statusText(&engine.Container{State: s}, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
