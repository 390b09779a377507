package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestDockerShowsAsDockerDoes(t *testing.T) {
	answers := map[string]string{
		"/containers/box/top":     `{"Titles":["PID","CMD"],"Processes":[["1","sleep 9"]]}`,
		"/containers/box/json":    `{"NetworkSettings":{"Ports":{"443/tcp":[{"HostIp":"::","HostPort":"8443"}],"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}],"9/udp":null}}}`,
		"/containers/box/changes": `[{"Kind":0,"Path":"/etc"},{"Kind":1,"Path":"/new"},{"Kind":2,"Path":"/old"}]`,
		"/events": `{"Type":"container","Action":"die","Actor":{"ID":"abc","Attributes":{"name":"box","exitCode":"7"}},"time":1700000000,"timeNano":1700000000000000005}
{"Type":"network","Action":"create","Actor":{"ID":"n"},"timeNano":1700000001000000000}`,
		"/commit":                  `{"Id":"sha256:made"}`,
		"/containers/box/stats":    stats,
		"/containers/second/stats": strings.ReplaceAll(stats, "box", "second"),
	}
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/containers/gone/stats" {
			http.Error(w, `{"message":"No such container: gone"}`, http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(answers[r.URL.Path]))
	}
	t.Setenv("TZ", "UTC")
	for args, want := range map[string]string{
		"top box -o pid,cmd": "PID                 CMD\n1                   sleep 9\n",
		"port box":           "80/tcp -> 0.0.0.0:8080\n443/tcp -> [::]:8443\n", "port box 80": "0.0.0.0:8080\n",
		"diff box":   "C /etc\nA /new\nD /old\n",
		"commit box": "sha256:made\n",
		"events --format {{.Action}}:{{.Actor.ID}}": "die:abc\ncreate:n\n",
		"stats --no-stream --format {{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.MemPerc}}|{{.NetIO}}|{{.BlockIO}}|{{.PIDs}} box": "box|50.00%|6MiB / 64MiB|9.38%|1.5kB / 2kB|4.1kB / 0B|3\n",
		"stats --no-stream --format {{.Name}} box second":                                                                    "box\nsecond\n",
	} {
		out, said, err := dockerOutput(t, h, strings.Fields(args)...)
		if out != want || err != nil {
			t.Errorf("%s: %q, want %q (%v, %s)", args, out, want, err, said)
		}
	}
	out, _, err := dockerOutput(t, h, "events", "--since", "1")
	if !strings.Contains(out, "000000005") || !strings.HasSuffix(out, " network create n\n") || !strings.Contains(out, " container die abc (exitCode=7, name=box)\n") || err != nil {
		t.Errorf("events: %q, %v", out, err)
	}
	// One that is gone since it was listed is not one to stop for; one that was asked for is.
	answers["/containers/json"] = `[{"Id":"box"},{"Id":"gone"}]`
	if out, said, err := dockerOutput(t, h, "stats", "--no-stream", "--format", "{{.Name}}"); out != "box\n" || err != nil {
		t.Errorf("stats: %q, %v, %s", out, err, said)
	}
	for args, want := range map[string]string{
		"stats --no-stream gone": "No such container: gone",
		"port box 81":            "No public port '81/tcp' published for box", "nonesuch --flag": `unknown command "nonesuch"`, "attach box": "does not say",
	} {
		if _, said, err := dockerOutput(t, h, strings.Fields(args)...); err == nil || !strings.Contains(said, want) {
			t.Errorf("%s: %v, %q", args, err, said)
		}
	}
}

const stats = `{"name":"/box","id":"0123456789abcdef","pids_stats":{"current":3},"cpu_stats":{"cpu_usage":{"total_usage":3000},"system_cpu_usage":18000,"online_cpus":2},
	"precpu_stats":{"cpu_usage":{"total_usage":1000},"system_cpu_usage":10000,"online_cpus":2},"memory_stats":{"usage":8388608,"limit":67108864,"stats":{"inactive_file":2097152}},
	"networks":{"eth0":{"rx_bytes":1000,"tx_bytes":2000},"eth1":{"rx_bytes":500}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":4096},{"op":"Total","value":4096}]}}`

func TestCPUPercentOfStrangeSamplesIsNone(t *testing.T) {
	for _, s := range []container.StatsResponse{
		{}, {CPUStats: container.CPUStats{CPUUsage: container.CPUUsage{TotalUsage: 5}, SystemUsage: 1}, PreCPUStats: container.CPUStats{SystemUsage: 9}},
	} {
		if got := cpuPercent(&s); got != 0 {
			t.Errorf("%v", got)
		}
	}
}
