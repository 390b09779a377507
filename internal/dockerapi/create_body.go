package dockerapi

import (
	"encoding/json"
	"net"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// A createBody is what POST /containers/create takes.
type createBody struct {
	*container.Config
	// Cmd and Entrypoint may be one string, as clients before 1.24 sent them.
	Cmd, Entrypoint words
	// MacAddress is the first network's, up to 1.51.
	MacAddress       string
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// words are a list of strings that one string may stand for.
type words []string

func (w *words) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*w = words{s}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// A doorState is what the door keeps of a container's creation, for inspect to echo.
type doorState struct {
	Config     *container.Config
	HostConfig *container.HostConfig
}

// normalise fills in what docker fills in, and takes away what is not set: clients
// send every field, and zero, -1 and null all mean that it was not asked for.
func (b *createBody) normalise(v version) error {
	if b.Config == nil && (b.Cmd != nil || b.Entrypoint != nil) {
		b.Config = &container.Config{}
	}
	if b.Config == nil {
		return invalid("config cannot be empty in order to create a container")
	}
	b.Config.Cmd, b.Config.Entrypoint = b.Cmd, b.Entrypoint
	if b.HostConfig == nil {
		b.HostConfig = &container.HostConfig{}
	}
	if b.NetworkingConfig == nil {
		b.NetworkingConfig = &network.NetworkingConfig{}
	}
	if err := b.normaliseMAC(v); err != nil {
		return err
	}
	normaliseHost(b.HostConfig, v)
	if b.NetworkDisabled {
		b.HostConfig.NetworkMode = network.NetworkNone
	}
	if len(b.NetworkingConfig.EndpointsConfig) > 1 && v < 44 {
		var names []string
		for name := range b.NetworkingConfig.EndpointsConfig {
			names = append(names, name)
		}
		slices.Sort(names)
		return invalid("Container cannot be connected to network endpoints: %s", strings.Join(names, ", "))
	}
	return nil
}

// normaliseMAC gives the container-wide hardware address, which API 1.52 dropped, to
// the network of the container's mode.
func (b *createBody) normaliseMAC(v version) error {
	if b.MacAddress == "" || v >= 52 {
		return nil
	}
	mac, err := net.ParseMAC(b.MacAddress)
	if err != nil {
		return invalid("invalid MAC address: %s", b.MacAddress)
	}
	mode := string(b.HostConfig.NetworkMode)
	if mode == "" {
		mode = network.NetworkDefault
	}
	if b.NetworkingConfig.EndpointsConfig == nil {
		b.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	e := b.NetworkingConfig.EndpointsConfig[mode]
	if e == nil {
		e = &network.EndpointSettings{}
		b.NetworkingConfig.EndpointsConfig[mode] = e
	}
	if len(e.MacAddress) == 0 {
		e.MacAddress = network.HardwareAddr(mac)
	}
	return nil
}

// defaultShm is docker's size of /dev/shm, in bytes.
const defaultShm = 64 << 20

func normaliseHost(h *container.HostConfig, v version) {
	if h.NetworkMode == "" || h.NetworkMode == network.NetworkDefault {
		h.NetworkMode = network.NetworkBridge
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShm
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModePrivate
		if v < 40 {
			h.IpcMode = container.IPCModeShareable // docker's default for clients that know no other
		}
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	if h.Runtime == "" {
		h.Runtime = runtimeName
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.OomKillDisable != nil && !*h.OomKillDisable {
		h.OomKillDisable = nil
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
		if h.MemorySwap < 0 {
			h.MemorySwap = -1
		}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if v < 43 {
		h.Annotations = nil
	}
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
	for port, bindings := range h.PortBindings {
		if len(bindings) == 0 {
			h.PortBindings[port] = []network.PortBinding{{}}
		}
	}
}

// runtimeName is the one runtime that there is.
const runtimeName = "den"
