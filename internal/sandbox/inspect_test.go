package sandbox

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProcStatWithAnyName(t *testing.T) {
	s, ok := parseProcStat("12 (a) R 1 (b\n) S 7 12 12 34817 12 4194560 96 0 0 0 3 4 5 6 20 0 9 0 100 2617344 123 18446744073709551615\n")
	if !ok || s.name != "a) R 1 (b\n" || s.state != "S" || s.ppid != 7 || s.user != 80*time.Millisecond || s.system != 100*time.Millisecond ||
		s.ownCPU != 70*time.Millisecond || s.threads != 9 || s.sinceBoot != time.Second || s.residentPage != 123 {
		t.Errorf("%+v, %v", s, ok)
	}
	if got := ttyName(s.tty); got != "pts/1" {
		t.Errorf("terminal is %q", got)
	}
	for nr, want := range map[uint64]string{0: "?", 4<<8 | 1: "tty1", 4<<8 | 65: "ttyS1", 136<<8 | 0x2c | 1<<20: "pts/300"} {
		if got := ttyName(nr); got != want {
			t.Errorf("terminal %#x is %q, want %q", nr, got, want)
		}
	}
	for _, line := range []string{"", "1 (", "1 ) (", "1 (x) S 1"} {
		if _, ok := parseProcStat(line); ok {
			t.Errorf("%q was read", line)
		}
	}
}

func FuzzProcStat(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/stat")
	f.Add(string(own))
	f.Add("1 (a) b) S")
	f.Fuzz(func(_ *testing.T, line string) {
		s, _ := parseProcStat(line)
		ttyName(s.tty)
		parseInterfaces(strings.NewReader(line))
		UserNames(strings.NewReader(line))
	})
}

func TestInterfacesOfProcNetDev(t *testing.T) {
	got := parseInterfaces(strings.NewReader(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:1 2 3 4 5 6 7 8 11 12 13 14 15 16 17 18
`))
	want := []InterfaceStats{{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 11, TxPackets: 12, TxErrors: 13, TxDropped: 14}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// FuzzDetachedRecords reads what a payload's process 1 may have written, and what was cut in the middle.
func FuzzDetachedRecords(f *testing.F) {
	f.Add(append(record(recordPid, 7), record(recordExit, 9)...))
	f.Add([]byte("m\"a\"\nc\"b\"\nm\"cut"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var rs records
		if err := rs.read(bytes.NewReader(data)); err != nil {
			t.Error(err)
		}
		if exit, err := rs.exit("x"); err == nil && exit.Code == 0 && exit.Signal != 0 {
			t.Errorf("%+v", exit)
		}
		made, copied := readMade(bytes.NewReader(data))
		if len(made)+len(copied) > bytes.Count(data, []byte("\n")) {
			t.Error("a line that is not whole was read")
		}
	})
}

func TestDetachedRecordsSayHowItEnded(t *testing.T) {
	data := slices.Concat(record(recordHolder, 5), record(recordPid, 7), record(recordExit, uint64(unix.SIGTERM)), record(recordOOM, 1), []byte("cut"))
	var rs records
	if err := rs.read(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	exit, err := rs.exit("x")
	if err != nil || exit != (Exit{Code: 143, Signal: unix.SIGTERM, OOMKilled: true}) || rs.holder != 5 || rs.pid != 7 {
		t.Errorf("%+v, %v, %+v", exit, err, rs)
	}
	if _, err := (&records{}).exit("x"); err == nil {
		t.Error("an end that nobody saw is none")
	}
}
