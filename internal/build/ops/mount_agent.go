package ops

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const defaultAgent = "default"

// An SSHAgent is one --ssh of the build.
type SSHAgent struct {
	// ID is "default" if empty.
	ID string
	// Paths are one socket of an agent or any number of private key files;
	// none is the agent of $SSH_AUTH_SOCK.
	Paths []string
}

// maxKeyBytes bounds a private key file.
const maxKeyBytes = 100 << 10

type sshAgents map[string]sshSource

// A sshSource is a socket, or keys held in this process.
type sshSource struct {
	socket string
	keys   agent.Agent
}

// NewSSH makes the agents of a build. A step can list and use their keys, and
// nothing else: it cannot add, remove or lock any.
func NewSSH(agents []SSHAgent) (SSH, error) {
	out := sshAgents{}
	for _, a := range agents {
		id := a.ID
		if id == "" {
			id = defaultAgent
		}
		if _, twice := out[id]; twice {
			return nil, fmt.Errorf("ssh agent %s: given twice: %w", id, errdefs.ErrInvalidArgument)
		}
		src, err := newSSHSource(a.Paths)
		if err != nil {
			return nil, fmt.Errorf("ssh agent %s: %w", id, err)
		}
		out[id] = src
	}
	return out, nil
}

func newSSHSource(paths []string) (sshSource, error) {
	if len(paths) == 0 || len(paths) == 1 && paths[0] == "" {
		sock := os.Getenv("SSH_AUTH_SOCK")
		if sock == "" {
			return sshSource{}, fmt.Errorf("no agent runs (SSH_AUTH_SOCK is empty); start one or name a key file: %w", errdefs.ErrInvalidArgument)
		}
		paths = []string{sock}
	}
	keys := agent.NewKeyring()
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return sshSource{}, err
		}
		if st.Mode()&os.ModeSocket != 0 {
			if len(paths) > 1 {
				return sshSource{}, fmt.Errorf("%s: a socket cannot be combined with other paths: %w", p, errdefs.ErrInvalidArgument)
			}
			return sshSource{socket: p}, nil
		}
		if err := addKey(keys, p); err != nil {
			return sshSource{}, err
		}
	}
	return sshSource{keys: keys}, nil
}

func addKey(keys agent.Agent, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(&boundedReader{r: f, left: maxKeyBytes, name: name})
	if err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	return keys.Add(agent.AddedKey{PrivateKey: key})
}

// Agent connects to the agent of that id.
func (a sshAgents) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	src, ok := a[id]
	if !ok {
		return nil, fmt.Errorf("ssh agent %s: not given to this build; add --ssh %s: %w", id, id, errdefs.ErrNotFound)
	}
	var upstream io.ReadWriteCloser
	if src.socket != "" {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", src.socket)
		if err != nil {
			return nil, fmt.Errorf("ssh agent %s: %w", id, err)
		}
		upstream = conn
	} else {
		ours, theirs := net.Pipe()
		go func() {
			agent.ServeAgent(src.keys, theirs) // ends when ours is closed
			theirs.Close()
		}()
		upstream = ours
	}
	here, there := net.Pipe()
	go func() {
		filterAgent(there, upstream) // ends when the caller closes its side
		there.Close()
		upstream.Close()
	}()
	return here, nil
}

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
