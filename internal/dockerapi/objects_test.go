package dockerapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/engine"
	"den/internal/network"
	"den/internal/sandbox"
)

func TestLifeOperationsReachTheEngine(t *testing.T) {
	up := &engine.Container{ID: "a", State: engine.State{Running: true}}
	for _, tt := range []struct {
		request, want string
		status        int
	}{
		{"POST /containers/a/start", "start a", 204},
		{"POST /v1.41/containers/a/stop?t=1&signal=USR1", "stop a  1s", 204},
		{"POST /v1.42/containers/a/stop?t=0&signal=USR1", "stop a USR1 0s", 204},
		{"POST /containers/a/stop", "stop a  -", 204},
		{"POST /containers/a/stop?t=x", "", 400},
		{"POST /containers/b/stop", "stop b  -", 404},
		{"POST /containers/down/stop", "stop down  -", 304},
		{"POST /containers/a/restart?t=-1", "restart a  -1s", 204},
		{"POST /containers/a/kill?signal=USR1", "kill a USR1", 204},
		{"POST /containers/a/kill", "kill a ", 204},
		{"POST /containers/a/pause", "pause a", 204},
		{"POST /containers/a/unpause", "resume a", 204},
		{"POST /containers/a/rename?name=bb", "rename a bb", 204},
		{"POST /containers/a/rename", "", 400},
		{"DELETE /containers/a?v=True&force=False&link=0", "remove a volumes", 204},
		{"DELETE /containers/a?v=1&force=1", "remove a force volumes", 204},
		{"GET /containers/a/attach/ws", "", 400},
		{"POST /containers/a/checkpoints", "", 501},
		{"POST /containers/a/resize?h=x&w=1", "", 400},
	} {
		f := &fake{containers: []*engine.Container{up, {ID: "down"}}}
		method, target, _ := strings.Cut(tt.request, " ")
		resp, text := ask(t, New(Options{Engine: f}), method, target, "")
		if got := strings.Join(f.calls, ";"); resp.StatusCode != tt.status || got != tt.want {
			t.Errorf("%s: status %d, %q, %s", tt.request, resp.StatusCode, got, text)
		}
	}
	resp, _ := ask(t, New(Options{Engine: &fake{}}), "POST", "/containers/a/start", `{"HostConfig":{}}`)
	if resp.StatusCode != 400 {
		t.Errorf("start with a body: status %d", resp.StatusCode)
	}
}

func TestUpdateChangesOnlyWhatIsSet(t *testing.T) {
	f := &fake{containers: []*engine.Container{example(t)}}
	resp, text := ask(t, New(Options{Engine: f}), "POST", "/containers/c1/update",
		`{"Memory":100000000,"MemorySwap":-1,"NanoCpus":0,"PidsLimit":null,"MemorySwappiness":null,"RestartPolicy":{"Name":"no"},"CpusetMems":"0","OomKillDisable":true}`)
	if resp.StatusCode != 200 || !strings.Contains(text, "OomKillDisable") {
		t.Fatalf("status %d, %s", resp.StatusCode, text)
	}
	want := &engine.Limits{MemoryBytes: 100_000_000, MemorySwapBytes: -1, CPUs: 1.5, Pids: 10, CpusetMems: "0"}
	if diff := cmp.Diff(want, f.updated.Limits); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(&engine.RestartPolicy{}, f.updated.Restart); diff != "" {
		t.Error(diff)
	}
	if at(t, string(f.updated.Door), "HostConfig", "Memory") != 1e8 || at(t, string(f.updated.Door), "Config", "Hostname") != "hh" {
		t.Errorf("kept: %s", f.updated.Door)
	}
}

func TestArchives(t *testing.T) {
	f := &fake{archive: "tar", stat: sandbox.FileStat{Name: "etc", Size: 4096, Mode: fs.ModeDir | 0o755, ModTime: time.Unix(5, 0).UTC(), LinkTarget: "x"}}
	s := New(Options{Engine: f})
	for _, method := range []string{"HEAD", "GET"} {
		resp, text := ask(t, s, method, "/containers/a/archive?path=%2Fetc", "")
		data, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Docker-Container-Path-Stat"))
		if err != nil || string(data) != `{"name":"etc","size":4096,"mode":2147484141,"mtime":"1970-01-01T00:00:05Z","linkTarget":"x"}` {
			t.Errorf("%s: %s, %v", method, data, err)
		}
		if method == "GET" && text != "tar" {
			t.Errorf("%q", text)
		}
	}
	r := httptest.NewRequest("PUT", "/containers/a/archive?noOverwriteDirNonDir=true&path=%2F", strings.NewReader("bytes"))
	r.Header.Set("Content-Type", "text/plain")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != 200 || string(f.written) != "bytes" || !slices.Contains(f.calls, "write / keep-kinds") {
		t.Errorf("status %d, %q, %q", w.Code, f.written, f.calls)
	}
	f.err = fs.ErrNotExist
	if resp, text := ask(t, s, "GET", "/containers/a/archive?path=/x", ""); resp.StatusCode != 404 || message(t, text) != "Could not find the file /x in container a" {
		t.Errorf("status %d, %s", resp.StatusCode, text)
	}
	if resp, _ := ask(t, s, "GET", "/containers/a/archive", ""); resp.StatusCode != 400 {
		t.Errorf("without a path: status %d", resp.StatusCode)
	}
}

func TestProgramThatCannotBeRunIsTheRequestsFault(t *testing.T) {
	f := &fake{err: &sandbox.ExecError{Program: "x", Code: 127, Err: fs.ErrNotExist}}
	if resp, text := ask(t, New(Options{Engine: f}), "POST", "/containers/a/start", ""); resp.StatusCode != 400 || !strings.HasPrefix(message(t, text), `exec: "x"`) {
		t.Errorf("status %d, %s", resp.StatusCode, text)
	}
}

func TestVolumes(t *testing.T) {
	f := &fake{
		volumes: []*engine.Volume{
			{Name: "data", Path: "/s/data", Created: time.Unix(5, 0).UTC(), Labels: map[string]string{"a": "b"}, Options: map[string]string{"type": "tmpfs"}},
			{Name: "0123", Anonymous: true},
			{Name: "named"},
		},
		users: map[string][]string{"data": {"c"}},
	}
	s := New(Options{Engine: f})
	for filters, want := range map[string]string{
		``: "data 0123 named", `{"dangling":["true"]}`: "0123 named", `{"dangling":{"false":true}}`: "data", `{"label":["a=b"]}`: "data",
		`{"name":["dat"]}`: "data", `{"driver":["local"]}`: "data 0123 named", `{"driver":["nfs"]}`: "",
	} {
		_, text := ask(t, s, "GET", "/volumes?filters="+url.QueryEscape(filters), "")
		var list struct {
			Volumes []struct{ Name, Driver, Scope, Mountpoint, CreatedAt string }
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range list.Volumes {
			names = append(names, v.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
	for version, want := range map[string]string{"1.41": "data", "1.42": "data named"} {
		f.kept = nil
		ask(t, s, "POST", "/v"+version+"/volumes/prune", "")
		if got := strings.Join(f.kept, " "); got != want {
			t.Errorf("%s keeps %q, want %q", version, got, want)
		}
	}
	for body, status := range map[string]int{`{"Name":"ok","Labels":{"k":"v"}}`: 201, ``: 201, `{"Name":"../x"}`: 400, `{"Name":"a"}`: 400, `{"Driver":"nfs"}`: 404, `{"ClusterVolumeSpec":{}}`: 503, `{"Labels":[]}`: 400} {
		if resp, text := ask(t, s, "POST", "/volumes/create", body); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", body, resp.StatusCode, text)
		}
	}
	f.err = errdefs.ErrNotFound
	for target, status := range map[string]int{"/volumes/x": 404, "/volumes/x?force=1": 204} {
		if resp, text := ask(t, s, "DELETE", target, ""); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", target, resp.StatusCode, text)
		}
	}
}

func TestNetworks(t *testing.T) {
	f := &fake{
		networks: []*network.Network{
			{ID: strings.Repeat("1", 64), Name: "bridge", Default: true, Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Gateway: netip.MustParseAddr("172.17.0.1")}}},
			{ID: strings.Repeat("2", 64), Name: "n1", Labels: map[string]string{"a": "b"}},
		},
		endpoints: map[string][]network.Endpoint{strings.Repeat("1", 64): {{ID: "e", Container: "cc", Name: "c1", MAC: "02:42:ac:11:00:02", IPv4: netip.MustParsePrefix("172.17.0.2/16")}}},
	}
	s := New(Options{Engine: f})
	for filters, want := range map[string]string{
		``: "bridge n1 host none", `{"name":["n1"]}`: "n1", `{"driver":["bridge"]}`: "bridge n1", `{"driver":["null"]}`: "none",
		`{"type":["custom"]}`: "n1", `{"type":["builtin"]}`: "bridge host none", `{"label":["a"]}`: "n1", `{"scope":["swarm"]}`: "",
		`{"dangling":["true"]}`: "n1", `{"id":["222"]}`: "n1",
	} {
		_, text := ask(t, s, "GET", "/networks?filters="+url.QueryEscape(filters), "")
		var list []struct{ Name string }
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
	_, text := ask(t, s, "GET", "/v1.52/networks/bridge?verbose=true", "")
	for path, want := range map[string]any{
		"Driver": "bridge", "Scope": "local", "EnableIPv4": true, "IPAM/Driver": "default", "IPAM/Config/Subnet": "172.17.0.0/16", "IPAM/Config/Gateway": "172.17.0.1",
		"Containers/cc/Name": "c1", "Containers/cc/IPv4Address": "172.17.0.2/16", "Containers/cc/MacAddress": "02:42:ac:11:00:02", "Containers/cc/IPv6Address": "",
		"Labels": map[string]any{}, "Options": map[string]any{},
	} {
		if diff := cmp.Diff(want, at(t, text, strings.Split(path, "/")...)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	if got := at(t, text, "Status", "IPAM", "Subnets"); !cmp.Equal(got, map[string]any{"172.17.0.0/16": map[string]any{"IPsInUse": 4.0, "DynamicIPsAvailable": 65532.0}}) {
		t.Errorf("%v", got)
	}
	if resp, text := ask(t, s, "GET", "/networks/none", ""); resp.StatusCode != 200 || at(t, text, "Driver") != "null" {
		t.Errorf("%s", text)
	}
	for body, status := range map[string]int{
		`{"Name":"x"}`: 201, `{"Name":"x","CheckDuplicate":true,"Driver":"bridge","EnableIPv6":false,"IPAM":{"Driver":"default","Options":{},"Config":[]},"ConfigFrom":{"Network":""}}`: 201,
		`{}`: 400, `{"Name":"host"}`: 403, `{"Name":"bridge"}`: 403, `{"Name":"x","Driver":"overlay"}`: 503, `{"Name":"x","Driver":"macvlan"}`: 404,
		`{"Name":"x","ConfigOnly":true}`: 400, `{"Name":"x","IPAM":{"Config":[{"Subnet":"x"}]}}`: 400, `{"Name":"x","IPAM":{"Driver":"y"}}`: 404, `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.1.2.3/24"}]}}`: 400, `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.1.2.0/24","IPRange":"10.1.2.3/25"}]}}`: 400, `{"Name":"x","IPAM":{"Config":[{"Gateway":"10.0.0.1"}]}}`: 400,
	} {
		if resp, text := ask(t, s, "POST", "/networks/create", body); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", body, resp.StatusCode, text)
		}
	}
	ask(t, s, "POST", "/networks/create", `{"Name":"x","Internal":true,"Labels":{"l":"m"},"Options":{"o":"p"},"IPAM":{"Config":[{"Subnet":"10.77.0.0/24","Gateway":"10.77.0.1","IPRange":"10.77.0.128/25","AuxiliaryAddresses":{"r":"10.77.0.5"}}]}}`)
	want := &network.CreateRequest{Name: "x", Driver: "bridge", Internal: true, Labels: map[string]string{"l": "m"}, Options: map[string]string{"o": "p"}, Subnets: []network.Subnet{{
		Prefix: netip.MustParsePrefix("10.77.0.0/24"), Gateway: netip.MustParseAddr("10.77.0.1"), Range: netip.MustParsePrefix("10.77.0.128/25"), Auxiliary: map[string]netip.Addr{"r": netip.MustParseAddr("10.77.0.5")},
	}}}
	if diff := cmp.Diff(want, f.network, requests); diff != "" {
		t.Error(diff)
	}
	ask(t, s, "POST", "/networks/n1/connect", `{"Container":"c1","EndpointConfig":{"Aliases":["q"],"IPAMConfig":{"IPv4Address":"10.77.0.9"}}}`)
	if diff := cmp.Diff(network.EndpointRequest{Network: "n1", Aliases: []string{"q"}, IPv4: netip.MustParseAddr("10.77.0.9")}, f.connected, requests); diff != "" {
		t.Error(diff)
	}
	f.calls = nil
	ask(t, s, "POST", "/networks/n1/disconnect", `{"Container":"c1","Force":true}`)
	if got := strings.Join(f.calls, ";"); got != "disconnect c1 n1 force" {
		t.Error(got)
	}
	f.err = errdefs.ErrFailedPrecondition
	for target, status := range map[string]int{"/networks/host": 403, "/networks/n1": 403} {
		if resp, text := ask(t, s, "DELETE", target, ""); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", target, resp.StatusCode, text)
		}
	}
}

func TestEvents(t *testing.T) {
	all := []engine.Event{
		{Type: "container", Action: "start", ID: "aa", Attributes: map[string]string{"name": "c1", "image": "busybox:1", "l": "m"}, Time: time.Unix(5, 7)},
		{Type: "container", Action: "exec_create: sh", ID: "bb", Attributes: map[string]string{"name": "c2", "image": "alpine"}, Time: time.Unix(6, 0)},
		{Type: "network", Action: "connect", ID: "nn", Attributes: map[string]string{"container": "aa", "name": "n1"}, Time: time.Unix(7, 0)},
		{Type: "image", Action: "pull", ID: "busybox:1", Attributes: map[string]string{"name": "busybox"}, Time: time.Unix(8, 0)},
	}
	for filters, want := range map[string]string{
		``: "aa bb nn busybox:1", `{"type":["container"]}`: "aa bb", `{"event":["start"]}`: "aa", `{"event":["exec_create"]}`: "bb", `{"container":["c1"]}`: "aa",
		`{"container":["aa"]}`: "aa nn", `{"label":["l=m"]}`: "aa", `{"image":["busybox"]}`: "aa busybox:1", `{"network":["n1"]}`: "nn", `{"scope":["swarm"]}`: "", `{"volume":["x"]}`: "",
	} {
		f := &fake{events: make(chan engine.Event, len(all))}
		for _, e := range all {
			f.events <- e
		}
		close(f.events)
		_, text := ask(t, New(Options{Engine: f}), "GET", "/v1.41/events?since=1&until=10&filters="+url.QueryEscape(filters), "")
		var ids []string
		for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
			var e struct{ Actor struct{ ID string } }
			if err := d.Decode(&e); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, e.Actor.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
	for _, tt := range []struct{ version, accept, media, text string }{
		{"1.41", "", "application/json", `{"status":"start","id":"aa","from":"busybox:1","Type":"container","Action":"start","Actor":{"ID":"aa","Attributes":{"image":"busybox:1","l":"m","name":"c1"}},"scope":"local","time":5,"timeNano":5000000007}` + "\n"},
		{"1.53", "application/jsonl, application/x-ndjson;q=0.9", "application/jsonl", `{"Type":"container"`},
		{"1.41", "application/jsonl", "application/jsonl", `{"status"`},
		{"1.52", "application/x-ndjson, application/jsonl;q=0.9", "application/x-ndjson", `{"Type":"container"`},
		{"1.52", "application/json-seq", "application/json-seq", "\x1e{\"Type\":\"container\""},
		{"1.51", "text/html", "application/json", `{"status"`},
		{"1.56", "application/json", "application/jsonl", `{"Type":"container"`},
		{"1.56", "", "application/jsonl", `{"Type":"container"`},
	} {
		f := &fake{events: make(chan engine.Event, 1)}
		f.events <- all[0]
		close(f.events)
		r := httptest.NewRequest("GET", "/v"+tt.version+"/events", nil)
		r.Header.Set("Accept", tt.accept)
		w := httptest.NewRecorder()
		New(Options{Engine: f}).ServeHTTP(w, r)
		if w.Header().Get("Content-Type") != tt.media || !strings.HasPrefix(w.Body.String(), tt.text) {
			t.Errorf("%s %s: %s, %q", tt.version, tt.accept, w.Header().Get("Content-Type"), w.Body)
		}
	}
	for _, query := range []string{"since=x", "until=x", "since=5&until=2", "filters=x", "filters=%7B%22what%22%3A%5B%22x%22%5D%7D"} {
		if resp, text := ask(t, New(Options{Engine: &fake{}}), "GET", "/events?"+query, ""); resp.StatusCode != 400 {
			t.Errorf("%s: status %d, %s", query, resp.StatusCode, text)
		}
	}
}

func TestStatsLetClientsReckonPercents(t *testing.T) {
	sample := func(n int) engine.Stats {
		return engine.Stats{
			Stats: sandbox.Stats{
				Read: time.Unix(int64(n), 0), CPUTotal: time.Duration(n) * time.Second / 2, MemoryBytes: 10 << 20, MemoryCacheBytes: 2 << 20, MemoryLimitBytes: 64 << 20, Pids: 3,
				Interfaces: []sandbox.InterfaceStats{{Name: "eth0", RxBytes: 5}},
			},
			SystemCPU: time.Duration(n) * 2 * time.Second, CPUs: 2,
		}
	}
	f := &fake{containers: []*engine.Container{{ID: "a", Name: "c1"}}, samples: []engine.Stats{sample(1), sample(2)}}
	_, text := ask(t, New(Options{Engine: f}), "GET", "/containers/a/stats?stream=0", "")
	for path, want := range map[string]any{
		"name": "/c1", "id": "a", "cpu_stats/cpu_usage/total_usage": 1e9, "precpu_stats/cpu_usage/total_usage": 5e8,
		"cpu_stats/system_cpu_usage": 4e9, "precpu_stats/system_cpu_usage": 2e9, "cpu_stats/online_cpus": 2.0, "memory_stats/usage": float64(10 << 20),
		"memory_stats/limit": float64(64 << 20), "memory_stats/stats/inactive_file": float64(2 << 20), "pids_stats/current": 3.0, "networks/eth0/rx_bytes": 5.0,
	} {
		if diff := cmp.Diff(want, at(t, text, strings.Split(path, "/")...)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	f.samples = []engine.Stats{sample(1)}
	if _, text := ask(t, New(Options{Engine: f}), "GET", "/containers/a/stats?stream=false&one-shot=1", ""); at(t, text, "precpu_stats", "cpu_usage", "total_usage") != 0.0 {
		t.Error(text)
	}
	// One that ends between the two samples is answered, too.
	ended := &endingStats{fake: f, first: sample(1)}
	if _, text := ask(t, New(Options{Engine: ended}), "GET", "/containers/a/stats?stream=0", ""); at(t, text, "preread") != "1970-01-01T00:00:01Z" {
		t.Error(text)
	}
	// One that does not run is answered at once.
	if _, text := ask(t, New(Options{Engine: f}), "GET", "/containers/a/stats?stream=0", ""); at(t, text, "read") != "0001-01-01T00:00:00Z" {
		t.Error(text)
	}
	for target, status := range map[string]int{"/containers/b/stats": 404, "/containers/a/stats?one-shot=1": 400} {
		if resp, text := ask(t, New(Options{Engine: f}), "GET", target, ""); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", target, resp.StatusCode, text)
		}
	}
}

// endingStats knows the stats of a container that ends after the first sample.
type endingStats struct {
	*fake
	first engine.Stats
	asked bool
}

func (e *endingStats) Stats(context.Context, string) (engine.Stats, error) {
	if e.asked {
		return engine.Stats{}, conflict("container a is not running")
	}
	e.asked = true
	return e.first, nil
}

func TestTopShowsTheColumnsOfPs(t *testing.T) {
	f := &fake{processes: []sandbox.Process{{Pid: 7, PPid: 1, UID: 5, User: "bob", State: "S", TTY: "?", Name: "sh", Command: []string{"sh", "-c", "x"}, CPU: 61 * time.Second, Started: time.Now().Add(-2 * time.Hour), RSSBytes: 2048}}}
	s := New(Options{Engine: f})
	for args, want := range map[string]string{
		"":                   "UID PID PPID C STIME TTY TIME CMD",
		"-ef":                "UID PID PPID C STIME TTY TIME CMD",
		"aux":                "USER PID %CPU RSS TTY STAT STIME TIME COMMAND",
		"-o pid,comm":        "PID COMMAND",
		"-eo pid,ppid,args":  "PID PPID COMMAND",
		"-o pid -o user=WHO": "PID WHO",
		"-opid,rss":          "PID RSS",
		"--format=pid,etime": "PID ELAPSED",
		"-e":                 "PID TTY TIME CMD",
	} {
		resp, text := ask(t, s, "GET", "/containers/a/top?ps_args="+url.QueryEscape(args), "")
		var top struct {
			Titles    []string
			Processes [][]string
		}
		if err := json.Unmarshal([]byte(text), &top); err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: status %d, %s", args, resp.StatusCode, text)
			continue
		}
		if got := strings.Join(top.Titles, " "); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
		if len(top.Processes) != 1 || len(top.Processes[0]) != len(top.Titles) || !slices.Contains(top.Processes[0], "7") {
			t.Errorf("%s: %q", args, top.Processes)
		}
	}
	for args, status := range map[string]int{"-o comm": 500, "-o pid,what": 400, "-o": 500} {
		if resp, text := ask(t, s, "GET", "/containers/a/top?ps_args="+url.QueryEscape(args), ""); resp.StatusCode != status {
			t.Errorf("%s: status %d, %s", args, resp.StatusCode, text)
		}
	}
}

func FuzzPsColumns(f *testing.F) {
	f.Add("-eo pid,user=X aux")
	f.Fuzz(func(t *testing.T, args string) {
		if _, err := psColumns(args); err != nil && statusOf(err) != 400 && !errdefs.IsInternal(err) {
			t.Fatal(err)
		}
	})
}
