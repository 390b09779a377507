package ops

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Numbers and bounds of the agent protocol (draft-miller-ssh-agent, section 5.1).
const (
	agentFailure      = 5
	agentListRequest  = 11
	agentSignRequest  = 13
	maxAgentRequest   = 256 << 10
	maxAgentReply     = 16 << 20
	agentHeaderLength = 4
)

// filterAgent passes requests from down to up that list keys or sign, and
// answers all others with a failure, until one side ends.
func filterAgent(down, up io.ReadWriter) error {
	for {
		req, err := readAgentMessage(down, maxAgentRequest)
		if err != nil {
			return err
		}
		reply := []byte{0, 0, 0, 1, agentFailure}
		if kind := req[agentHeaderLength]; kind == agentListRequest || kind == agentSignRequest {
			if _, err := up.Write(req); err != nil {
				return err
			}
			if reply, err = readAgentMessage(up, maxAgentReply); err != nil {
				return err
			}
		}
		if _, err := down.Write(reply); err != nil {
			return err
		}
	}
}

// readAgentMessage reads a message with its length in front.
func readAgentMessage(r io.Reader, limit uint32) ([]byte, error) {
	var header [agentHeaderLength]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n == 0 || n > limit {
		return nil, fmt.Errorf("agent message of %d bytes: %w", n, errdefs.ErrInvalidArgument)
	}
	msg := make([]byte, agentHeaderLength+n)
	copy(msg, header[:])
	_, err := io.ReadFull(r, msg[agentHeaderLength:])
	return msg, err
}
