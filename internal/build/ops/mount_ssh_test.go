package ops

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh/agent"
)

// keyAgents are agents with a key each, served as an agent serves its socket.
type keyAgents map[string]agent.Agent

func newKeyAgents(t *testing.T, ids ...string) keyAgents {
	t.Helper()
	a := keyAgents{}
	for _, id := range ids {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		a[id] = agent.NewKeyring()
		if err := a[id].Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func (a keyAgents) Agent(_ context.Context, id string) (io.ReadWriteCloser, error) {
	keys, ok := a[id]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	ours, theirs := net.Pipe()
	go func() {
		agent.ServeAgent(keys, theirs)
		theirs.Close()
	}()
	return ours, nil
}

func TestStepsReachTheAgentThroughTheirSocket(t *testing.T) {
	s := testStep(&Env{SSH: newKeyAgents(t, "default")}, plainRun(nil))
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

// countedAgents counts those who talk to them.
type countedAgents struct {
	mu        sync.Mutex
	now, most int
}

type countedAgent struct {
	net.Conn
	gone func()
}

func (c *countedAgent) Close() error { c.gone(); return c.Conn.Close() }

func (a *countedAgents) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	a.add(1)
	ours, theirs := net.Pipe()
	go func() {
		_ = agent.ServeAgent(agent.NewKeyring(), theirs)
		theirs.Close()
	}()
	return &countedAgent{ours, sync.OnceFunc(func() { a.add(-1) })}, nil
}

func (a *countedAgents) add(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now += n
	a.most = max(a.most, a.now)
}

// A step that opens connections without end takes few of den's descriptors, and the
// others are served when it closes some.
func TestAStepHasFewConnectionsToItsAgent(t *testing.T) {
	agents := &countedAgents{}
	s := testStep(&Env{SSH: agents}, plainRun(nil))
	m, _, err := s.sshMount(t.Context(), &pb.Mount{SSHOpt: &pb.SSHOpt{Mode: 0o600, Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}}, "/ssh")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 2 * maxAgentClients {
		c, err := net.Dial("unix", m.Source)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		if _, err := agent.NewClient(c).List(); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if agents.most > maxAgentClients {
		t.Errorf("%d connections to the agent at a time", agents.most)
	}
}

func TestMissingAgentsFailUnlessOptional(t *testing.T) {
	for _, env := range []*Env{{}, {SSH: newKeyAgents(t, "a")}} {
		for _, optional := range []bool{true, false} {
			s := testStep(env, plainRun(nil))
			_, ok, err := s.sshMount(context.Background(), &pb.Mount{SSHOpt: &pb.SSHOpt{ID: "b", Optional: optional}}, "/ssh")
			if ok || (err == nil) != optional || err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("optional %v: %v, %v", optional, ok, err)
			}
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
