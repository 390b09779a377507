package dockerapi

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// A fate is what becomes of a field of a create body.
type fate int

const (
	honoured fate = iota // the engine is asked for it
	warned               // the answer says that it is discarded
	refused              // the answer is an error
	kept                 // inspect shows it, and nothing else happens: in docker on Linux, too
	ignored              // what a client sends back of an earlier answer; docker on Linux does not read it either
)

// fields are all that a create body has. with is what asks for the field, without the same without it;
// both stand where the field does.
var fields = [...]struct {
	path          string
	fate          fate
	with, without string
}{
	{"Hostname", honoured, `"Hostname":"h"`, ""},
	{"Domainname", honoured, `"Domainname":"h"`, ""},
	{"User", honoured, `"User":"u"`, ""},
	{"AttachStdin", honoured, `"AttachStdin":true`, ""},
	{"AttachStdout", honoured, `"AttachStdout":true`, ""},
	{"AttachStderr", honoured, `"AttachStderr":true`, ""},
	{"ExposedPorts[]", honoured, `"ExposedPorts":{"80/tcp":{}}`, ""},
	{"Tty", honoured, `"Tty":true`, ""},
	{"OpenStdin", honoured, `"OpenStdin":true`, ""},
	{"StdinOnce", honoured, `"StdinOnce":true`, ""},
	{"Env[]", honoured, `"Env":["A=1"]`, ""},
	{"Cmd[]", honoured, `"Cmd":["c"]`, ""},
	{"Healthcheck.Test[]", honoured, `"Healthcheck":{"Test":["NONE"]}`, `"Healthcheck":{}`},
	{"Healthcheck.Interval", honoured, `"Healthcheck":{"Interval":1000000}`, `"Healthcheck":{}`},
	{"Healthcheck.Timeout", honoured, `"Healthcheck":{"Timeout":1000000}`, `"Healthcheck":{}`},
	{"Healthcheck.StartPeriod", honoured, `"Healthcheck":{"StartPeriod":1000000}`, `"Healthcheck":{}`},
	{"Healthcheck.StartInterval", honoured, `"Healthcheck":{"StartInterval":1000000}`, `"Healthcheck":{}`},
	{"Healthcheck.Retries", honoured, `"Healthcheck":{"Retries":1}`, `"Healthcheck":{}`},
	{"ArgsEscaped", kept, `"ArgsEscaped":true`, ""}, // Windows'
	{"Image", honoured, `"Image":"other"`, ""},
	{"Volumes[]", honoured, `"Volumes":{"/v":{}}`, ""},
	{"WorkingDir", honoured, `"WorkingDir":"/w"`, ""},
	{"Entrypoint[]", honoured, `"Entrypoint":["e"]`, ""},
	{"NetworkDisabled", honoured, `"NetworkDisabled":true`, ""},
	{"OnBuild[]", kept, `"OnBuild":["RUN true"]`, ""}, // for commit
	{"Labels[]", honoured, `"Labels":{"k":"v"}`, ""},
	{"StopSignal", honoured, `"StopSignal":"SIGINT"`, ""},
	{"StopTimeout", honoured, `"StopTimeout":3`, ""},
	{"Shell[]", kept, `"Shell":["sh"]`, ""}, // for commit
	{"HostConfig.Binds[]", honoured, `"Binds":["/a:/b"]`, ""},
	{"HostConfig.ContainerIDFile", kept, `"ContainerIDFile":"/f"`, ""}, // the client writes it
	{"HostConfig.LogConfig.Type", honoured, `"LogConfig":{"Type":"local"}`, ""},
	{"HostConfig.LogConfig.Config[]", honoured, `"LogConfig":{"Config":{"max-size":"1m"}}`, ""},
	{"HostConfig.NetworkMode", honoured, `"NetworkMode":"host"`, ""},
	{"HostConfig.PortBindings[][].HostIP", honoured, `"PortBindings":{"80/tcp":[{"HostIP":"127.0.0.1"}]}`, `"PortBindings":{"80/tcp":[{}]}`},
	{"HostConfig.PortBindings[][].HostPort", honoured, `"PortBindings":{"80/tcp":[{"HostPort":"81"}]}`, `"PortBindings":{"80/tcp":[{}]}`},
	{"HostConfig.RestartPolicy.Name", honoured, `"RestartPolicy":{"Name":"always"}`, ""},
	{"HostConfig.RestartPolicy.MaximumRetryCount", honoured, `"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":1}`, `"RestartPolicy":{"Name":"on-failure"}`},
	{"HostConfig.AutoRemove", honoured, `"AutoRemove":true`, ""},
	{"HostConfig.VolumeDriver", refused, `"VolumeDriver":"other"`, ""}, // but for local
	{"HostConfig.VolumesFrom[]", honoured, `"VolumesFrom":["c"]`, ""},
	{"HostConfig.ConsoleSize", honoured, `"ConsoleSize":[24,80]`, ""},
	{"HostConfig.Annotations[]", honoured, `"Annotations":{"k":"v"}`, ""},
	{"HostConfig.CapAdd[]", honoured, `"CapAdd":["CAP_KILL"]`, ""},
	{"HostConfig.CapDrop[]", honoured, `"CapDrop":["CAP_KILL"]`, ""},
	{"HostConfig.CgroupnsMode", honoured, `"CgroupnsMode":"host"`, ""},
	{"HostConfig.DNS[]", honoured, `"Dns":["1.1.1.1"]`, ""},
	{"HostConfig.DNSOptions[]", honoured, `"DnsOptions":["ndots:2"]`, ""},
	{"HostConfig.DNSSearch[]", honoured, `"DnsSearch":["example.com"]`, ""},
	{"HostConfig.ExtraHosts[]", honoured, `"ExtraHosts":["h:1.2.3.4"]`, ""},
	{"HostConfig.GroupAdd[]", honoured, `"GroupAdd":["g"]`, ""},
	{"HostConfig.IpcMode", honoured, `"IpcMode":"host"`, ""},
	{"HostConfig.Cgroup", warned, `"Cgroup":"container:c"`, ""},
	{"HostConfig.Links[]", honoured, `"Links":["c:d"]`, ""},
	{"HostConfig.OomScoreAdj", honoured, `"OomScoreAdj":5`, ""},
	{"HostConfig.PidMode", honoured, `"PidMode":"host"`, ""},
	{"HostConfig.Privileged", refused, `"Privileged":true`, ""},
	{"HostConfig.PublishAllPorts", honoured, `"PublishAllPorts":true`, ""},
	{"HostConfig.ReadonlyRootfs", honoured, `"ReadonlyRootfs":true`, ""},
	{"HostConfig.SecurityOpt[]", honoured, `"SecurityOpt":["no-new-privileges"]`, ""},
	{"HostConfig.StorageOpt[]", refused, `"StorageOpt":{"size":"1G"}`, ""},
	{"HostConfig.Tmpfs[]", honoured, `"Tmpfs":{"/t":"size=1m"}`, `"Tmpfs":{"/t":""}`},
	{"HostConfig.UTSMode", honoured, `"UTSMode":"host"`, ""},
	{"HostConfig.UsernsMode", kept, `"UsernsMode":"host"`, ""}, // there is no other than den's
	{"HostConfig.ShmSize", honoured, `"ShmSize":1048576`, ""},
	{"HostConfig.Sysctls[]", honoured, `"Sysctls":{"net.core.somaxconn":"100"}`, ""},
	{"HostConfig.Runtime", refused, `"Runtime":"other"`, ""},
	{"HostConfig.Umask", refused, `"Umask":63`, ""},
	{"HostConfig.Isolation", refused, `"Isolation":"hyperv"`, ""},
	{"HostConfig.CPUShares", honoured, `"CpuShares":100`, ""},
	{"HostConfig.Memory", honoured, `"Memory":104857600`, ""},
	{"HostConfig.NanoCPUs", honoured, `"NanoCpus":1000000000`, ""},
	{"HostConfig.CgroupParent", honoured, `"CgroupParent":"/p"`, ""},
	{"HostConfig.BlkioWeight", honoured, `"BlkioWeight":100`, ""},
	{"HostConfig.BlkioWeightDevice[].Path", warned, `"BlkioWeightDevice":[{"Path":"/dev/vda"}]`, ""},
	{"HostConfig.BlkioWeightDevice[].Weight", warned, `"BlkioWeightDevice":[{"Weight":1}]`, ""},
	{"HostConfig.BlkioDeviceReadBps[].Path", warned, `"BlkioDeviceReadBps":[{"Path":"/dev/vda"}]`, ""},
	{"HostConfig.BlkioDeviceReadBps[].Rate", warned, `"BlkioDeviceReadBps":[{"Rate":1}]`, ""},
	{"HostConfig.BlkioDeviceWriteBps[].Path", warned, `"BlkioDeviceWriteBps":[{"Path":"/dev/vda"}]`, ""},
	{"HostConfig.BlkioDeviceWriteBps[].Rate", warned, `"BlkioDeviceWriteBps":[{"Rate":1}]`, ""},
	{"HostConfig.BlkioDeviceReadIOps[].Path", warned, `"BlkioDeviceReadIOps":[{"Path":"/dev/vda"}]`, ""},
	{"HostConfig.BlkioDeviceReadIOps[].Rate", warned, `"BlkioDeviceReadIOps":[{"Rate":1}]`, ""},
	{"HostConfig.BlkioDeviceWriteIOps[].Path", warned, `"BlkioDeviceWriteIOps":[{"Path":"/dev/vda"}]`, ""},
	{"HostConfig.BlkioDeviceWriteIOps[].Rate", warned, `"BlkioDeviceWriteIOps":[{"Rate":1}]`, ""},
	{"HostConfig.CPUPeriod", honoured, `"CpuPeriod":50000,"CpuQuota":50000`, `"CpuQuota":50000`},
	{"HostConfig.CPUQuota", honoured, `"CpuQuota":50000`, ""},
	{"HostConfig.CPURealtimePeriod", warned, `"CpuRealtimePeriod":1000`, ""},
	{"HostConfig.CPURealtimeRuntime", warned, `"CpuRealtimeRuntime":1000`, ""},
	{"HostConfig.CpusetCpus", honoured, `"CpusetCpus":"0"`, ""},
	{"HostConfig.CpusetMems", honoured, `"CpusetMems":"0"`, ""},
	{"HostConfig.Devices[].PathOnHost", honoured, `"Devices":[{"PathOnHost":"/dev/null"}]`, ""},
	{"HostConfig.Devices[].PathInContainer", honoured, `"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/n"}]`, `"Devices":[{"PathOnHost":"/dev/null"}]`},
	{"HostConfig.Devices[].CgroupPermissions", honoured, `"Devices":[{"PathOnHost":"/dev/null","CgroupPermissions":"r"}]`, `"Devices":[{"PathOnHost":"/dev/null"}]`},
	{"HostConfig.DeviceCgroupRules[]", warned, `"DeviceCgroupRules":["c 1:3 r"]`, ""},
	{"HostConfig.DeviceRequests[].Driver", refused, `"DeviceRequests":[{"Driver":"nvidia"}]`, ""},
	{"HostConfig.DeviceRequests[].Count", refused, `"DeviceRequests":[{"Count":-1}]`, ""},
	{"HostConfig.DeviceRequests[].DeviceIDs[]", refused, `"DeviceRequests":[{"DeviceIDs":["0"]}]`, ""},
	{"HostConfig.DeviceRequests[].Capabilities[][]", refused, `"DeviceRequests":[{"Capabilities":[["gpu"]]}]`, ""},
	{"HostConfig.DeviceRequests[].Options[]", refused, `"DeviceRequests":[{"Options":{"k":"v"}}]`, ""},
	{"HostConfig.MemoryReservation", honoured, `"MemoryReservation":104857600`, ""},
	{"HostConfig.MemorySwap", honoured, `"Memory":104857600,"MemorySwap":-1`, `"Memory":104857600`},
	{"HostConfig.MemorySwappiness", warned, `"MemorySwappiness":10`, ""},
	{"HostConfig.OomKillDisable", warned, `"OomKillDisable":true`, ""},
	{"HostConfig.PidsLimit", honoured, `"PidsLimit":10`, ""},
	{"HostConfig.Ulimits[].Name", honoured, `"Ulimits":[{"Name":"core"}]`, ""},
	{"HostConfig.Ulimits[].Hard", honoured, `"Ulimits":[{"Name":"core","Hard":1}]`, `"Ulimits":[{"Name":"core"}]`},
	{"HostConfig.Ulimits[].Soft", honoured, `"Ulimits":[{"Name":"core","Soft":1}]`, `"Ulimits":[{"Name":"core"}]`},
	{"HostConfig.CPUCount", warned, `"CpuCount":1`, ""},
	{"HostConfig.CPUPercent", warned, `"CpuPercent":1`, ""},
	{"HostConfig.IOMaximumIOps", warned, `"IOMaximumIOps":1`, ""},
	{"HostConfig.IOMaximumBandwidth", warned, `"IOMaximumBandwidth":1`, ""},
	{"HostConfig.Mounts[].Type", honoured, `"Mounts":[{"Type":"tmpfs","Target":"/b"}]`, `"Mounts":[{"Type":"volume","Target":"/b"}]`},
	{"HostConfig.Mounts[].Source", honoured, `"Mounts":[{"Type":"volume","Target":"/b","Source":"vol"}]`, `"Mounts":[{"Type":"volume","Target":"/b"}]`},
	{"HostConfig.Mounts[].Target", honoured, `"Mounts":[{"Type":"volume","Target":"/c"}]`, `"Mounts":[{"Type":"volume","Target":"/b"}]`},
	{"HostConfig.Mounts[].ReadOnly", honoured, bindWith(`"ReadOnly":true`), bindWith(`"ReadOnly":false`)},
	{"HostConfig.Mounts[].Consistency", kept, bindWith(`"Consistency":"cached"`), bindWith(`"ReadOnly":false`)}, // macOS's
	{"HostConfig.Mounts[].BindOptions.Propagation", honoured, bindWith(`"BindOptions":{"Propagation":"shared"}`), bindWith(`"BindOptions":{}`)},
	{"HostConfig.Mounts[].BindOptions.NonRecursive", honoured, bindWith(`"BindOptions":{"NonRecursive":true}`), bindWith(`"BindOptions":{}`)},
	{"HostConfig.Mounts[].BindOptions.CreateMountpoint", honoured, bindWith(`"BindOptions":{"CreateMountpoint":true}`), bindWith(`"BindOptions":{}`)},
	{"HostConfig.Mounts[].BindOptions.ReadOnlyNonRecursive", honoured, bindWith(`"ReadOnly":true,"BindOptions":{"ReadOnlyNonRecursive":true}`), bindWith(`"ReadOnly":true`)},
	{"HostConfig.Mounts[].BindOptions.ReadOnlyForceRecursive", kept, bindWith(`"ReadOnly":true,"BindOptions":{"ReadOnlyForceRecursive":true}`), bindWith(`"ReadOnly":true`)}, // den forces it always
	{"HostConfig.Mounts[].VolumeOptions.NoCopy", honoured, volumeWith(`"NoCopy":true`), volumeWith("")},
	{"HostConfig.Mounts[].VolumeOptions.Labels[]", honoured, volumeWith(`"Labels":{"k":"v"}`), volumeWith("")},
	{"HostConfig.Mounts[].VolumeOptions.Subpath", honoured, volumeWith(`"Subpath":"s"`), volumeWith("")},
	{"HostConfig.Mounts[].VolumeOptions.DriverConfig.Name", refused, volumeWith(`"DriverConfig":{"Name":"other"}`), ""},
	{"HostConfig.Mounts[].VolumeOptions.DriverConfig.Options[]", honoured, volumeWith(`"DriverConfig":{"Options":{"type":"tmpfs"}}`), volumeWith("")},
	{"HostConfig.Mounts[].ImageOptions.Subpath", refused, `"Mounts":[{"Type":"image","Source":"i","Target":"/i","ImageOptions":{"Subpath":"s"}}]`, ""},
	{"HostConfig.Mounts[].TmpfsOptions.SizeBytes", honoured, tmpfsWith(`"SizeBytes":1048576`), tmpfsWith("")},
	{"HostConfig.Mounts[].TmpfsOptions.Mode", honoured, tmpfsWith(`"Mode":448`), tmpfsWith("")},
	{"HostConfig.Mounts[].TmpfsOptions.Options[][]", honoured, tmpfsWith(`"Options":[["noexec"]]`), tmpfsWith("")},
	{"HostConfig.Mounts[].ClusterOptions", refused, bindWith(`"ClusterOptions":{}`), ""},
	{"HostConfig.MaskedPaths[]", honoured, `"MaskedPaths":["/proc/keys"]`, ""},
	{"HostConfig.ReadonlyPaths[]", honoured, `"ReadonlyPaths":["/proc/sys"]`, ""},
	{"HostConfig.Init", honoured, `"Init":true`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPAMConfig.IPv4Address", honoured, `"IPAMConfig":{"IPv4Address":"10.0.0.9"}`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPAMConfig.IPv6Address", honoured, `"IPAMConfig":{"IPv6Address":"fd00::9"}`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPAMConfig.LinkLocalIPs[]", warned, `"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}`, ""},
	{"NetworkingConfig.EndpointsConfig[].Links[]", honoured, `"Links":["c:d"]`, ""},
	{"NetworkingConfig.EndpointsConfig[].Aliases[]", honoured, `"Aliases":["a"]`, ""},
	{"NetworkingConfig.EndpointsConfig[].DriverOpts[]", warned, `"DriverOpts":{"k":"v"}`, ""},
	{"NetworkingConfig.EndpointsConfig[].GwPriority", warned, `"GwPriority":1`, ""},
	{"NetworkingConfig.EndpointsConfig[].NetworkID", ignored, `"NetworkID":"0123"`, ""},
	{"NetworkingConfig.EndpointsConfig[].EndpointID", ignored, `"EndpointID":"0123"`, ""},
	{"NetworkingConfig.EndpointsConfig[].Gateway", ignored, `"Gateway":"10.0.0.1"`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPAddress", ignored, `"IPAddress":"10.0.0.9"`, ""},
	{"NetworkingConfig.EndpointsConfig[].MacAddress", honoured, `"MacAddress":"02:00:00:00:00:09"`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPPrefixLen", ignored, `"IPPrefixLen":24`, ""},
	{"NetworkingConfig.EndpointsConfig[].IPv6Gateway", ignored, `"IPv6Gateway":"fd00::1"`, ""},
	{"NetworkingConfig.EndpointsConfig[].GlobalIPv6Address", ignored, `"GlobalIPv6Address":"fd00::9"`, ""},
	{"NetworkingConfig.EndpointsConfig[].GlobalIPv6PrefixLen", ignored, `"GlobalIPv6PrefixLen":64`, ""},
	{"NetworkingConfig.EndpointsConfig[].DNSNames[]", ignored, `"DNSNames":["n"]`, ""},
}

func bindWith(more string) string {
	return `"Mounts":[{"Type":"bind","Source":"/a","Target":"/b",` + more + `}]`
}

func volumeWith(options string) string {
	return `"Mounts":[{"Type":"volume","Source":"vol","Target":"/b","VolumeOptions":{` + options + `}}]`
}

func tmpfsWith(options string) string {
	return `"Mounts":[{"Type":"tmpfs","Target":"/b","TmpfsOptions":{` + options + `}}]`
}

// bodyWith is a create body with a part of it where the field at path stands.
func bodyWith(path, part string) string {
	switch {
	case strings.HasPrefix(path, "HostConfig."):
		return fmt.Sprintf(`{"Image":"box","HostConfig":{%s}}`, part)
	case strings.HasPrefix(path, "NetworkingConfig."):
		return fmt.Sprintf(`{"Image":"box","HostConfig":{"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"n":{%s}}}}`, part)
	case part == "", strings.HasPrefix(part, `"Image"`):
		return fmt.Sprintf(`{"WorkingDir":"/"%s}`, strings.Repeat(","+part, min(1, len(part))))
	}
	return fmt.Sprintf(`{"WorkingDir":"/",%s}`, part)
}

// leaves visits the fields of t, and of what it consists of, that have a value of their own.
func leaves(t reflect.Type, path string, visit func(path string)) {
	isLeaf := func(t reflect.Type) bool {
		p := reflect.PointerTo(t)
		return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	}
	for !isLeaf(t) && slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array}, t.Kind()) {
		if t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || isLeaf(t) || t.NumField() == 0 {
		visit(path)
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		switch {
		case !f.IsExported():
		case f.Anonymous:
			leaves(f.Type, path, visit)
		default:
			leaves(f.Type, strings.TrimPrefix(path+"."+f.Name, "."), visit)
		}
	}
}

// A field that the API's module has and that is not in the table is silently ignored.
func TestEveryFieldOfACreateBodyHasItsFate(t *testing.T) {
	left := map[string]bool{}
	leaves(reflect.TypeFor[struct {
		container.Config
		HostConfig       container.HostConfig
		NetworkingConfig network.NetworkingConfig
	}](), "", func(path string) { left[path] = true })
	for _, f := range fields {
		if !left[f.path] {
			t.Errorf("%s is twice in the table, or no field", f.path)
		}
		delete(left, f.path)
	}
	for path := range left {
		t.Errorf("%s is not in the table: say what becomes of it", path)
	}
}

func TestFieldsOfACreateBodyMeetTheirFate(t *testing.T) {
	send := func(body string) (status int, f *fake, answer container.CreateResponse) {
		t.Helper()
		f = &fake{}
		resp, text := ask(t, New(Options{Engine: f}), "POST", "/v1.51/containers/create", body)
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatalf("%s: %s: %v", body, text, err)
		}
		return resp.StatusCode, f, answer
	}
	for _, f := range fields {
		body := bodyWith(f.path, f.with)
		status, with, answer := send(body)
		if f.fate == refused {
			if status < 400 || status >= 500 {
				t.Errorf("%s: %s: status %d", f.path, body, status)
			}
			continue
		}
		before, without, plain := send(bodyWith(f.path, f.without))
		if status != 201 || before != 201 {
			t.Errorf("%s: %s: status %d, without it %d", f.path, body, status, before)
			continue
		}
		doors := cmp.Diff(without.created.Door, with.created.Door)
		with.created.Door, without.created.Door = nil, nil
		asked := cmp.Diff(without.created, with.created, requests) != ""
		said := len(answer.Warnings) > len(plain.Warnings)
		isNetworking := strings.HasPrefix(f.path, "NetworkingConfig.")
		if asked != (f.fate == honoured) || said != (f.fate == warned) || doors == "" && !isNetworking {
			t.Errorf("%s: %s: the engine is asked %v, warnings %q, kept %v", f.path, body, asked, answer.Warnings, doors != "")
		}
	}
}

// connectFields are all that the body of a connection to a network has.
var connectFields = [...]struct {
	path string
	fate fate
	body string // beside Container
}{
	{"Container", honoured, `"Container":"other"`},
	{"EndpointConfig.IPAMConfig.IPv4Address", honoured, `"EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.0.0.9"}}`},
	{"EndpointConfig.IPAMConfig.IPv6Address", honoured, `"EndpointConfig":{"IPAMConfig":{"IPv6Address":"fd00::9"}}`},
	{"EndpointConfig.IPAMConfig.LinkLocalIPs[]", refused, `"EndpointConfig":{"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}}`},
	{"EndpointConfig.Links[]", honoured, `"EndpointConfig":{"Links":["c:d"]}`},
	{"EndpointConfig.Aliases[]", honoured, `"EndpointConfig":{"Aliases":["a"]}`},
	{"EndpointConfig.DriverOpts[]", refused, `"EndpointConfig":{"DriverOpts":{"com.docker.network.endpoint.ifname":"net7"}}`},
	{"EndpointConfig.GwPriority", refused, `"EndpointConfig":{"GwPriority":1}`},
	{"EndpointConfig.NetworkID", ignored, `"EndpointConfig":{"NetworkID":"0123"}`},
	{"EndpointConfig.EndpointID", ignored, `"EndpointConfig":{"EndpointID":"0123"}`},
	{"EndpointConfig.Gateway", ignored, `"EndpointConfig":{"Gateway":"10.0.0.1"}`},
	{"EndpointConfig.IPAddress", ignored, `"EndpointConfig":{"IPAddress":"10.0.0.9"}`},
	{"EndpointConfig.MacAddress", honoured, `"EndpointConfig":{"MacAddress":"02:00:00:00:00:09"}`},
	{"EndpointConfig.IPPrefixLen", ignored, `"EndpointConfig":{"IPPrefixLen":24}`},
	{"EndpointConfig.IPv6Gateway", ignored, `"EndpointConfig":{"IPv6Gateway":"fd00::1"}`},
	{"EndpointConfig.GlobalIPv6Address", ignored, `"EndpointConfig":{"GlobalIPv6Address":"fd00::9"}`},
	{"EndpointConfig.GlobalIPv6PrefixLen", ignored, `"EndpointConfig":{"GlobalIPv6PrefixLen":64}`},
	{"EndpointConfig.DNSNames[]", ignored, `"EndpointConfig":{"DNSNames":["n"]}`},
}

func TestEveryFieldOfAConnectBodyHasItsFate(t *testing.T) {
	left := map[string]bool{}
	leaves(reflect.TypeFor[network.ConnectRequest](), "", func(path string) { left[path] = true })
	for _, f := range connectFields {
		if !left[f.path] {
			t.Errorf("%s is twice in the table, or no field", f.path)
		}
		delete(left, f.path)
	}
	for path := range left {
		t.Errorf("%s is not in the table: say what becomes of it", path)
	}
}

func TestFieldsOfAConnectBodyMeetTheirFate(t *testing.T) {
	send := func(version, body string) (status int, f *fake, text string) {
		t.Helper()
		f = &fake{}
		resp, text := ask(t, New(Options{Engine: f}), "POST", "/v"+version+"/networks/n/connect", body)
		return resp.StatusCode, f, text
	}
	_, plain, _ := send("1.51", `{"Container":"c"}`)
	for _, f := range connectFields {
		status, got, text := send("1.51", `{"Container":"c",`+f.body+`}`)
		if f.fate == refused {
			if status != 400 || !strings.Contains(text, "leave it out") || len(got.calls) > 0 {
				t.Errorf("%s: status %d, %s, the engine is asked %q", f.path, status, text, got.calls)
			}
			continue
		}
		if asked := cmp.Diff(plain.calls, got.calls)+cmp.Diff(plain.connected, got.connected, requests) != ""; status != 200 || asked != (f.fate == honoured) {
			t.Errorf("%s: status %d, %s, the engine is asked %v", f.path, status, text, asked)
		}
	}
	for body, want := range map[string]int{
		`{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.forwarding=1"}`: 400,
		`{"com.docker.network.endpoint.unheard-of":"1","k":"v"}`:                      200, // as dockerd does
		`{}`: 200,
	} {
		if status, _, text := send("1.51", `{"Container":"c","EndpointConfig":{"DriverOpts":`+body+`}}`); status != want {
			t.Errorf("%s: status %d, %s", body, status, text)
		}
	}
	if status, _, text := send("1.47", `{"Container":"c","EndpointConfig":{"GwPriority":1}}`); status != 200 {
		t.Errorf("a field that the version does not have: status %d, %s", status, text)
	}
}
