package engine

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

func TestSignalsAreReadAsDockerReadsThem(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "rtmax-1": 63, "SIGRTMAX": 64, "USR1": 10,
	} {
		if got, err := ParseSignal(s); got != want || err != nil {
			t.Errorf("%s is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "9x", "SIG", "NOPE", "SIGRTMIN+99", "SIGRTMAX-99", "SIGRTMIN+x", controlStop} {
		if got, err := ParseSignal(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}

func TestHostsAreReadInBothSpellings(t *testing.T) {
	for s, want := range map[string]string{
		"db:10.0.0.1": "db 10.0.0.1", "db=10.0.0.1": "db 10.0.0.1", "v6:::1": "v6 ::1", "v6=[::1]": "v6 ::1",
		"host.docker.internal:host-gateway": "host.docker.internal 127.0.0.1",
	} {
		name, ip, err := parseHost(s)
		if got := name + " " + ip.String(); got != want || err != nil {
			t.Errorf("%s is %s, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "db", ":1.2.3.4", "db:", "db:x", "a b:1.2.3.4", "a\n1.1.1.1 evil:1.2.3.4"} {
		if _, _, err := parseHost(s); err == nil {
			t.Errorf("%q is a host", s)
		}
	}
}

func newNamed(req RunRequest) *container {
	return &container{request: &req, config: &oci.Image{}, record: record{ID: strings.Repeat("f", 64)}}
}

func TestResolverConfigurationTakesWhatWasAskedFor(t *testing.T) {
	c := newNamed(RunRequest{DNS: []string{"9.9.9.9", "::1"}, DNSSearch: []string{"a.test", "b.test"}, DNSOptions: []string{"ndots:2"}})
	got, err := c.resolvConf()
	want := "nameserver 9.9.9.9\nnameserver ::1\nsearch a.test b.test\noptions ndots:2\n"
	if err != nil || !strings.HasSuffix(string(got), want) || strings.Count(string(got), "nameserver") != 2 {
		t.Errorf("resolv.conf is %q, %v", got, err)
	}
	got, err = newNamed(RunRequest{DNSSearch: []string{"."}}).resolvConf()
	if err != nil || strings.Contains(string(got), "search") {
		t.Errorf("resolv.conf is %q, %v", got, err)
	}
}

func TestContainerWithoutNetworkKnowsOnlyItself(t *testing.T) {
	got, err := newNamed(RunRequest{Network: "none", Hostname: "me", AddHosts: []string{"db:10.0.0.1"}}).hosts()
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n127.0.1.1\tme\n"
	if string(got) != want || err != nil {
		t.Errorf("hosts is %q, %v", got, err)
	}
}

func TestSwapIsAsMuchAsMemoryUnlessSaid(t *testing.T) {
	r := resources(Limits{MemoryBytes: 10 << 20, CPUs: 1.5, Pids: -1})
	if *r.Memory.Limit != 10<<20 || *r.Memory.Swap != 20<<20 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Pids.Limit != -1 {
		t.Errorf("resources are %+v %+v", r.Memory, r.CPU)
	}
	if r := resources(Limits{MemoryBytes: 10 << 20, MemorySwapBytes: -1}); *r.Memory.Swap != -1 {
		t.Errorf("swap is %d", *r.Memory.Swap)
	}
	if r := resources(Limits{}); r != nil {
		t.Errorf("no limits are %+v", r)
	}
}

func FuzzParseSignal(f *testing.F) {
	for _, s := range []string{"TERM", "SIGRTMIN+3", "9", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := ParseSignal(s); err == nil && (sig < 1 || sig > 64) {
			t.Errorf("%q is %d", s, sig)
		}
	})
}

// A name of twelve decimal digits, which chance makes of one identifier in three hundred,
// is an address to resolvers.
func TestHostNamesAreNoNumbers(t *testing.T) {
	real := rand.Reader
	t.Cleanup(func() { rand.Reader = real })
	rand.Reader = bytes.NewReader(append(bytes.Repeat([]byte{0x42}, 32), bytes.Repeat([]byte{0x4d}, 32)...))
	if id, err := newID(); id != strings.Repeat("4d", 32) || err != nil {
		t.Errorf("got %s, %v", id, err)
	}
}
