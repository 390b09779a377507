package ops

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func keyFile(t *testing.T) (string, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return name, key
}

func TestStepsReachTheAgentThroughTheirSocket(t *testing.T) {
	file, _ := keyFile(t)
	agents, err := NewSSH([]SSHAgent{{Paths: []string{file}}})
	if err != nil {
		t.Fatal(err)
	}
	s := testStep(&Env{SSH: agents}, plainRun(nil))
	m, ok, err := s.sshMount(context.Background(), &pb.Mount{SSHOpt: &pb.SSHOpt{
		Mode: 0o600, Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()),
	}}, "/ssh")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	st, err := os.Stat(m.Source)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for range 2 {
		conn, err := net.Dial("unix", m.Source)
		if err != nil {
			t.Fatal(err)
		}
		client := agent.NewClient(conn)
		keys, err := client.List()
		if err != nil || len(keys) != 1 {
			t.Fatalf("%v, %v", keys, err)
		}
		if _, err := client.Sign(keys[0], []byte("data")); err != nil {
			t.Error(err)
		}
		if err := client.RemoveAll(); err == nil {
			t.Error("a step removed the user's keys")
		}
		conn.Close()
	}
	open, err := net.Dial("unix", m.Source) // closed by the end of the step
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(m.Source)); !os.IsNotExist(err) {
		t.Errorf("the socket's directory is still there: %v", err)
	}
}

func TestSocketsOfRealAgentsAreForwarded(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	keys := agent.NewKeyring()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	if err := keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, c)
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", sock)
	agents, err := NewSSH([]SSHAgent{{}, {ID: "named", Paths: []string{sock}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"default", "named"} {
		conn, err := agents.Agent(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		got, err := agent.NewClient(conn).List()
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %v, %v", id, got, err)
		}
		conn.Close()
	}
}

func TestMissingAgentsFailUnlessOptional(t *testing.T) {
	file, _ := keyFile(t)
	agents, err := NewSSH([]SSHAgent{{ID: "a", Paths: []string{file}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range []*Env{{}, {SSH: agents}} {
		for _, optional := range []bool{true, false} {
			s := testStep(env, plainRun(nil))
			_, ok, err := s.sshMount(context.Background(), &pb.Mount{SSHOpt: &pb.SSHOpt{ID: "b", Optional: optional}}, "/ssh")
			if ok || (err == nil) != optional || err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("optional %v: %v, %v", optional, ok, err)
			}
		}
	}
}

func TestBrokenAgentsAreRefused(t *testing.T) {
	file, _ := keyFile(t)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	for name, agents := range map[string][]SSHAgent{
		"no agent runs": {{}},
		"missing file":  {{Paths: []string{"/nonexistent"}}},
		"no key":        {{Paths: []string{garbage}}},
		"twice":         {{Paths: []string{file}}, {ID: "default", Paths: []string{file}}},
	} {
		if _, err := NewSSH(agents); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzAgentFilter(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, agentListRequest})
	f.Add([]byte{0, 0, 0, 1, 19, 0, 0, 0, 1, agentSignRequest})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, request []byte) {
		var up bytes.Buffer
		down := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(request), io.Discard}
		filterAgent(down, struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(bytes.Repeat([]byte{0, 0, 0, 1, agentFailure}, len(request))), &up})
		for passed := up.Bytes(); len(passed) > 0; {
			n := int(binary.BigEndian.Uint32(passed)) + agentHeaderLength
			if kind := passed[agentHeaderLength]; kind != agentListRequest && kind != agentSignRequest {
				t.Fatalf("request %d passed", kind)
			}
			passed = passed[n:]
		}
	})
}
