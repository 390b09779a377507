package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// dockerOutput runs the command docker against a daemon that h plays.
func dockerOutput(t *testing.T, h http.HandlerFunc, args ...string) (said, complained string, err error) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "d.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	defer s.Close()
	var files []*os.File
	for _, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	err = runDocker(t.Context(), append([]string{"-H", "unix://" + l.Addr().String(), "--config", dir}, args...), streams{in: files[0], out: &stdout{File: files[1]}, err: files[2]})
	text := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return text(files[1]), text(files[2]), err
}

func TestDockerPsPrintsAsDockerDoes(t *testing.T) {
	out, _, err := dockerOutput(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/json" || r.URL.Query().Get("all") != "1" || r.URL.Query().Get("filters") != `{"name":["x"]}` {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write([]byte(`[{"Id":"0123456789abcdef","Image":"nginx","Command":"nginx -g daemon-off-and-more","Names":["/web"],"State":"running","Status":"Up 2 minutes",
			"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}],"NetworkSettings":{"Networks":{"bridge":{}}}}]`))
	}, "ps", "-a", "-f", "name=x", "--format", "{{.ID}} {{.Names}} {{.Command}} {{.Ports}} {{.Networks}}")
	if want := "0123456789ab web \"nginx -g daemon-off…\" 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp bridge\n"; err != nil || out != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

func TestDockerCreateSendsWhatWasTyped(t *testing.T) {
	var body map[string]any
	out, stderr, err := dockerOutput(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/create" || r.URL.Query().Get("name") != "n" {
			t.Errorf("asked for %s", r.URL)
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"Id":"abc","Warnings":["careful"]}`))
	}, "create", "--name", "n", "-p", "127.0.0.1:8080:80", "-p", "9000-9001:9000-9001/udp", "--restart", "on-failure:3", "-e", "A=b", "-v", "vol:/v:ro", "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m",
		"--network", "net1", "--network-alias", "al", "--health-cmd", "true", "--health-interval", "2s", "--memory", "64m", "--cpus", "1.5", "--memory-reservation", "32m", "--blkio-weight", "100", "--oom-score-adj", "5", "--domainname", "d", "-i", "image:1", "cmd", "-x")
	if err != nil || out != "abc\n" || stderr != "WARNING: careful\n" {
		t.Fatalf("%v, %q, %q", err, out, stderr)
	}
	host, _ := body["HostConfig"].(map[string]any)
	for got, want := range map[any]any{
		body["Image"]: "image:1", host["NetworkMode"]: "net1", host["Memory"]: float64(64 << 20), host["NanoCpus"]: 1.5e9,
		host["MemoryReservation"]: float64(32 << 20), host["BlkioWeight"]: 100.0, host["OomScoreAdj"]: 5.0, host["MemorySwappiness"]: nil, body["Domainname"]: "d",
	} {
		if got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
	for name, pair := range map[string][2]any{
		"ports": {host["PortBindings"], map[string]any{
			"80/tcp":   []any{map[string]any{"HostIp": "127.0.0.1", "HostPort": "8080"}},
			"9000/udp": []any{map[string]any{"HostIp": "", "HostPort": "9000"}},
			"9001/udp": []any{map[string]any{"HostIp": "", "HostPort": "9001"}},
		}},
		"restart": {host["RestartPolicy"], map[string]any{"Name": "on-failure", "MaximumRetryCount": 3.0}},
		"binds":   {host["Binds"], []any{"vol:/v:ro"}},
		"mounts":  {host["Mounts"], []any{map[string]any{"Type": "tmpfs", "Source": "", "Target": "/t", "ReadOnly": false, "TmpfsOptions": map[string]any{"SizeBytes": float64(1 << 20)}}}},
		"command": {body["Cmd"], []any{"cmd", "-x"}},
		"health":  {body["Healthcheck"], map[string]any{"Test": []any{"CMD-SHELL", "true"}, "Interval": 2e9}},
		"network": {body["NetworkingConfig"], map[string]any{"EndpointsConfig": map[string]any{"net1": map[string]any{"Aliases": []any{"al"}}}}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: %v, want %v", name, pair[0], pair[1])
		}
	}
}

func TestDockerSaysWhatTheDaemonRefuses(t *testing.T) {
	_, stderr, err := dockerOutput(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"message":"it is in use"}`))
	}, "rmi", "a", "b")
	if err == nil || stderr != strings.Repeat("Error response from daemon: it is in use\n", 2) {
		t.Errorf("%v, %q", err, stderr)
	}
}

func TestPublishedPortsAreRefusedThatMakeNoSense(t *testing.T) {
	for _, spec := range []string{"", "x", "80:90:100:110", "1.2.3:80:80", "80-90:80", "90-80", "70000", "1-2:1-3", "[::1:80:80"} {
		if got, err := publishedPorts([]string{spec}); err == nil && spec != "80-90:80" {
			t.Errorf("%q: %v", spec, got)
		}
	}
}

func FuzzPublishedPorts(f *testing.F) {
	f.Add("127.0.0.1:80-81:80-81/udp")
	f.Add("[::1]:80:80")
	f.Fuzz(func(t *testing.T, spec string) {
		ports, err := publishedPorts([]string{spec})
		if err == nil && len(ports) == 0 {
			t.Errorf("%q publishes nothing", spec)
		}
	})
}

// answers plays a daemon that knows these paths, and nothing else.
func answers(t *testing.T, known map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, ok := known[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			text = `{"message":"No such thing"}`
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
}

func exitOf(err error) int {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return 0
}

func TestDockerRowsHaveLabelsAndDockersJSON(t *testing.T) {
	daemon := answers(t, map[string]string{
		"GET /containers/json": `[{"Id":"0123456789abcdef","Image":"a","Command":"sh","Names":["/web"],"State":"running","Status":"Up","Labels":{"com.example.tier":"web,1"},
			"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]}]`,
	})
	out, _, err := dockerOutput(t, daemon, "ps", "--format", `{{.Label "com.example.tier"}} {{.Labels}}`)
	if want := "web,1 com.example.tier=web,1\n"; out != want || err != nil {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
	if out, _, err = dockerOutput(t, daemon, "ps", "--format", `table {{.Label "com.example.tier"}}`); out != "tier\nweb,1\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	out, _, err = dockerOutput(t, daemon, "ps", "--format", "json")
	if !strings.Contains(out, `"Ports":"0.0.0.0:8080-\u003e80/tcp"`) || strings.Contains(out, `"":`) || err != nil {
		t.Errorf("%s, %v", out, err)
	}
}

func TestDockerInspectPrintsWhatTheDaemonSaysInItsOrder(t *testing.T) {
	daemon := answers(t, map[string]string{
		"GET /v1.44/containers/web/json": `{"Id":"abc","Created":"2026-11-21T19:44:17Z","State":{"ExitCode":0,"Running":true},"Name":"/web"}`,
	})
	for _, c := range []struct {
		args     []string
		out, err string
		code     int
	}{
		{[]string{"inspect", "web"}, "[\n    {\n        \"Id\": \"abc\",\n        \"Created\": \"2026-11-21T19:44:17Z\",\n" +
			"        \"State\": {\n            \"ExitCode\": 0,\n            \"Running\": true\n        },\n        \"Name\": \"/web\"\n    }\n]\n", "", 0},
		{[]string{"inspect", "-f", "{{.Id}} {{.ID}} {{.Name}}", "web"}, "abc abc /web\n", "", 0},
		{[]string{"inspect", "-f", "{{if eq .State.ExitCode 0}}fine{{end}}", "web"}, "fine\n", "", 0}, // a number is one in docker's types
		{[]string{"inspect", "web", "nope", "-f", "{{.Id}}"}, "abc\n", "Error: No such object: nope\n", 1},
		{[]string{"container", "inspect", "nope"}, "[]\n", "Error response from daemon: No such thing\n", 1},
		{[]string{"inspect", "-f", "{{.Nope}}", "web"}, "", "template parsing error: template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\"\n", 1},
		{[]string{"inspect", "-f", "{{", "web"}, "", "template parsing error: template: :1: unclosed action\n", 64},
	} {
		out, complained, err := dockerOutput(t, daemon, c.args...)
		if out != c.out || complained != c.err || exitOf(err) != c.code {
			t.Errorf("%q: %q, %q, %d; want %q, %q, %d", c.args, out, complained, exitOf(err), c.out, c.err, c.code)
		}
	}
}

func TestDockerEndsWithDockersExitCodes(t *testing.T) {
	daemon := answers(t, map[string]string{"DELETE /containers/web": "", "GET /containers/web/json": `{"NetworkSettings":{"Ports":{"443/tcp":null,"80/tcp":[{"HostIp":"::","HostPort":"8080"}]}}}`})
	for _, c := range []struct {
		args string
		out  string
		code int
	}{
		{"ps extra", "", 1},
		{"ps --nope", "", 125},
		{"nope", "", 1},
		{"run", "", 1},
		{"run -p x a", "", 125},
		{"run --memory-reservation x a", "", 125},
		{"run --no-healthcheck --health-cmd x a", "", 125},
		{"rm -f web gone", "web\n", 0}, // what is not there need not be removed
		{"rm web gone", "web\n", 1},
		{"port web", "80/tcp -> [::]:8080\n", 0},
		{"port web 80", "[::]:8080\n", 0},
		{"port web 443", "", 1},
		{"start gone", "", 1},
		{"logout nobody.example", "Removing login credentials for nobody.example\n", 0},
	} {
		out, complained, err := dockerOutput(t, daemon, strings.Fields(c.args)...)
		if out != c.out || exitOf(err) != c.code {
			t.Errorf("%s: %q, %q, %d; want %q, %d", c.args, out, complained, exitOf(err), c.out, c.code)
		}
	}
}
