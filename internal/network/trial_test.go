package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a process in a user namespace says arrives as it was said.
func TestTrialsPassFromProcessToProcess(t *testing.T) {
	want := Trial{Facts{Namespaces: errors.New("a"), Packets: errors.New("b"), Rules: errors.New("c"), Forwarding: errors.New("d")}, PortTrial{errors.New("e"), errors.New("f"), errors.New("g")}}
	var b bytes.Buffer
	if err := want.write(&b); err != nil {
		t.Fatal(err)
	}
	var s saidTrial
	if err := json.Unmarshal(b.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	got := s.trial()
	var all string
	for _, err := range []error{got.Facts.Namespaces, got.Facts.Packets, got.Facts.Rules, got.Facts.Forwarding, got.Ports.TCP, got.Ports.UDP, got.Ports.Low} {
		all += err.Error()
	}
	if all != "abcdefg" || !errors.Is(words(fmt.Errorf("bind: %w", unix.EACCES)).err(), unix.EACCES) || errors.Is(got.Facts.Rules, unix.EACCES) {
		t.Errorf("%+v", got)
	}
	if (saidTrial{}).trial() != (Trial{}) {
		t.Error("nothing becomes an error")
	}
}

// In a user namespace there are networks of one's own, and no say in the one around it.
func TestTrialInAUserNamespace(t *testing.T) {
	got, err := TryInUserns(t.Context())
	if err != nil {
		t.Skip("needs user namespaces: ", err)
	}
	f := got.Facts
	if f.Namespaces != nil || f.Packets != nil || f.Rules == nil {
		t.Errorf("%+v", f)
	}
	if c := Choose(f); c.Driver != UsernsDriver || c.Better != BridgeDriver {
		t.Errorf("%+v", c)
	}
	if got.Ports.TCP != nil || got.Ports.UDP != nil {
		t.Errorf("%+v", got.Ports)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if refused := got.Ports.Low != nil; refused != (strings.TrimSpace(string(b)) == "1024") {
			t.Errorf("ports from %s on are for everybody: %v", b, got.Ports.Low)
		}
	}
}

func TestLowPortsAreRefusedToWhoMayNotHaveThem(t *testing.T) {
	err := tryLowPort()
	switch {
	case os.Geteuid() == 0 && err != nil:
		t.Error(err)
	case err != nil && (!errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "bind port 1023")):
		t.Error(err)
	}
}
