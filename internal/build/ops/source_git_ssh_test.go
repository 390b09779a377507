package ops

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"den/internal/progress"
)

// sshServer serves a gitServer's repositories over ssh, to holders of keys of
// the agent only. It returns its address and a line for known_hosts.
func sshServer(t *testing.T, s *gitServer, keys agent.Agent) (addr, known string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git, to serve repositories over ssh")
	}
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(hostKey)
	if err != nil {
		t.Fatal(err)
	}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		list, err := keys.List()
		for _, have := range list {
			if string(have.Marshal()) == string(k.Marshal()) {
				return nil, nil
			}
		}
		return nil, fmt.Errorf("unknown key: %v", err)
	}}
	conf.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serveSSH(c, conf)
		}
	}()
	return l.Addr().String(), knownhosts.Line([]string{l.Addr().String()}, signer.PublicKey())
}

func (s *gitServer) serveSSH(c net.Conn, conf *ssh.ServerConfig) {
	defer c.Close()
	conn, chans, reqs, err := ssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(reqs)
	for ch := range chans {
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			ok := r.Type == "exec" && len(r.Payload) > 4
			r.Reply(ok, nil)
			if !ok {
				continue
			}
			line := string(r.Payload[4 : 4+binary.BigEndian.Uint32(r.Payload)])
			path := strings.Trim(strings.TrimPrefix(line, "git-upload-pack "), "'")
			cmd := exec.Command("git", "-c", "safe.directory=*", "upload-pack", filepath.Join(s.dir, strings.TrimSuffix(path, ".git"), ".git"))
			cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, channel.Stderr()
			code := uint32(0)
			if cmd.Run() != nil {
				code = 1
			}
			channel.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, code))
			channel.Close()
		}
	}
}

func TestGitOverSSHUsesTheBuildsAgentAndKnownHosts(t *testing.T) {
	srv := newGitServer(t)
	srv.repo(t, "r").commit(map[string]string{"a": "x"})
	agents := newKeyAgents(t, "default", "other")
	addr, known := sshServer(t, srv, agents["default"])
	env := storeEnv(t, t.TempDir())
	env.SSH = agents
	attrs := map[string]string{pb.AttrMountSSHSock: "default", pb.AttrKnownSSHHosts: known}
	url := "ssh://git@" + addr + "/r.git"
	r, _ := execOne(t, newGit(t, env, url, attrs))
	if got := content(t, r); got != "a -rw-r--r-- x\n" {
		t.Errorf("content %q", got)
	}
	_, strange, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(strange)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string]string){
		"another host key": func(a map[string]string) {
			a[pb.AttrKnownSSHHosts] = knownhosts.Line([]string{addr}, signer.PublicKey())
		},
		"no host key":   func(a map[string]string) { a[pb.AttrKnownSSHHosts] = "# nobody\n" },
		"another key":   func(a map[string]string) { a[pb.AttrMountSSHSock] = "other" },
		"no such agent": func(a map[string]string) { a[pb.AttrMountSSHSock] = "none" },
	} {
		a := map[string]string{pb.AttrMountSSHSock: "default", pb.AttrKnownSSHHosts: known}
		change(a)
		if _, err := newGit(t, env, url, a).CacheMap(context.Background(), progress.Discard); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	env.SSH = nil
	if _, err := newGit(t, env, url, attrs).CacheMap(context.Background(), progress.Discard); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "--ssh default") {
		t.Errorf("without an agent: %v", err)
	}
}
