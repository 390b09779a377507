package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// maxKeyBytes bounds a private key file.
const maxKeyBytes = 100 << 10

// sshAgents are the agents of a build, by id.
type sshAgents map[string]sshAgent

// An sshAgent is a running agent's socket, or keys held here.
type sshAgent struct {
	socket string
	keys   agent.Agent
}

// parseSSH reads "--ssh id[=socket|key[,key]]".
func parseSSH(r *Request) (sshAgents, error) {
	agents := sshAgents{}
	for _, value := range r.SSH {
		id, list, _ := strings.Cut(value, "=")
		if id == "" {
			return nil, invalid("ssh %q has no id", value)
		}
		if _, ok := agents[id]; ok {
			return nil, invalid("ssh: id %q is given twice", id)
		}
		a, err := newSSHAgent(r, splitList([]string{list}))
		if err != nil {
			return nil, fmt.Errorf("ssh %s: %w", id, err)
		}
		agents[id] = a
	}
	return agents, nil
}

func newSSHAgent(r *Request, paths []string) (sshAgent, error) {
	if len(paths) == 0 {
		sock := r.env("SSH_AUTH_SOCK")
		if sock == "" {
			return sshAgent{}, invalid("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
		}
		return sshAgent{socket: sock}, nil
	}
	keyring := agent.NewKeyring()
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return sshAgent{}, err
		}
		if fi.Mode()&os.ModeSocket != 0 {
			if len(paths) > 1 {
				return sshAgent{}, invalid("only a single socket is allowed")
			}
			return sshAgent{socket: p}, nil
		}
		if err := addKey(keyring, p); err != nil {
			return sshAgent{}, fmt.Errorf("key %s: %w", p, err)
		}
	}
	return sshAgent{keys: readOnlyAgent{keyring}}, nil
}

func addKey(keyring agent.Agent, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxKeyBytes))
	if err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return invalid("the key is protected by a passphrase; add it to an ssh agent and pass the agent's socket")
	}
	if err != nil {
		return err
	}
	return keyring.Add(agent.AddedKey{PrivateKey: key})
}

// Agent connects to the agent of that id.
func (a sshAgents) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = "default"
	}
	src, ok := a[id]
	if !ok {
		return nil, fmt.Errorf("ssh agent %q: the build was not given one, use --ssh %s: %w", id, id, errdefs.ErrNotFound)
	}
	if src.socket != "" {
		var d net.Dialer
		return d.DialContext(ctx, "unix", src.socket)
	}
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		// It ends when the other end is closed, by its owner.
		_ = agent.ServeAgent(src.keys, ours)
	}()
	return theirs, nil
}

// readOnlyAgent signs and lists; a build step must not change the keys.
type readOnlyAgent struct{ agent.Agent }

var errReadOnlyAgent = errors.New("the agent of a build cannot be changed")

func (readOnlyAgent) Add(agent.AddedKey) error   { return errReadOnlyAgent }
func (readOnlyAgent) Remove(ssh.PublicKey) error { return errReadOnlyAgent }
func (readOnlyAgent) RemoveAll() error           { return errReadOnlyAgent }
func (readOnlyAgent) Lock([]byte) error          { return errReadOnlyAgent }
func (readOnlyAgent) Unlock([]byte) error        { return errReadOnlyAgent }
