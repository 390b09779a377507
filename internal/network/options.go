package network

import (
	"net/netip"
	"strconv"
)

// The options of docker's bridge driver that mean something here. Others are
// kept and shown, and do nothing.
const (
	optionICC        = "com.docker.network.bridge.enable_icc"
	optionBridgeName = "com.docker.network.bridge.name"
	optionHostIP     = "com.docker.network.bridge.host_binding_ipv4"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optionMTU        = "com.docker.network.driver.mtu"
)

func (n *Network) readOptions() error {
	icc, err := n.option(optionICC, true)
	if err != nil {
		return err
	}
	n.Isolated = !icc
	if _, err := n.option(optionMasquerade, true); err != nil {
		return err
	}
	if s := n.Options[optionMTU]; s != "" {
		mtu, err := strconv.Atoi(s)
		if err != nil || mtu < 68 || mtu > 65535 {
			return errInvalid("invalid option %s=%s: want 68 to 65535 bytes", optionMTU, s)
		}
		n.MTU, n.AskedMTU = mtu, true
	}
	if s := n.Options[optionBridgeName]; len(s) > 15 {
		return errInvalid("invalid option %s=%s: want at most 15 characters", optionBridgeName, s)
	}
	if s := n.Options[optionHostIP]; s != "" {
		if _, err := netip.ParseAddr(s); err != nil {
			return errInvalid("invalid option %s=%s: want an address", optionHostIP, s)
		}
	}
	return nil
}

func (n *Network) option(name string, otherwise bool) (bool, error) {
	s, ok := n.Options[name]
	if !ok {
		return otherwise, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, errInvalid("invalid option %s=%s: want true or false", name, s)
	}
	return v, nil
}

// hostIP is where the network's ports are published that name no address.
func (n *Network) hostIP(otherwise netip.Addr) netip.Addr {
	if a, err := netip.ParseAddr(n.Options[optionHostIP]); err == nil {
		return a
	}
	return otherwise
}
