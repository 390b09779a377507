package build

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestKeysAreServedByAReadOnlyAgent(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	agents, err := parseSSH(&Request{SSH: []string{"default=" + file}, LookupEnv: lookup(nil)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := agents.Agent(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys are %v, %v", keys, err)
	}
	if _, err := client.Sign(keys[0], []byte("x")); err != nil {
		t.Error(err)
	}
	if err := client.RemoveAll(); err == nil {
		t.Error("a step could remove the keys")
	}
	if _, err := agents.Agent(t.Context(), "other"); !errdefs.IsNotFound(err) {
		t.Errorf("error is %v", err)
	}
}
