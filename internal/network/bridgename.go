package network

// BridgeDriver is the name of the driver that has bridges in the outer network namespace.
const BridgeDriver = "bridge"

// bridgeName is the device of n's bridge: what the user asked for, or den's own
// name in the 15 bytes that the kernel allows.
func bridgeName(n *Network) string {
	if name := n.Options[optionBridgeName]; name != "" {
		return name
	}
	return "den-" + n.ID[:11]
}
