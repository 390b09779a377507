package sys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestLocksAreReadAsTheKernelPrintsThem(t *testing.T) {
	got, err := parseLocks(strings.NewReader(`1: FLOCK  ADVISORY  WRITE 708 08:01:13 0 EOF
1: -> FLOCK  ADVISORY  READ -1 fe:1f:9007199254740993 0 EOF
nonsense
2: POSIX  ADVISORY  READ  12 00:2a:7 128 1023
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []HeldLock{
		{Kind: "FLOCK", Exclusive: true, PID: 708, Device: "8:1", Inode: 13},
		{Kind: "FLOCK", Waiting: true, Device: "254:31", Inode: 9007199254740993},
		{Kind: "POSIX", PID: 12, Device: "0:42", Inode: 7},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOwnLockIsAmongTheHeld(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Flock(f, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	dev, err := MountDevice(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	locks, err := HeldLocks()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locks {
		if l.Device == dev && l.Inode == st.Ino && l.Exclusive && l.PID == os.Getpid() {
			return
		}
	}
	t.Errorf("no lock of %d on %s inode %d", os.Getpid(), dev, st.Ino)
}

func FuzzParseLocks(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 708 08:01:13 0 EOF\n1: -> FLOCK")
	f.Fuzz(func(t *testing.T, text string) {
		locks, _ := parseLocks(strings.NewReader(text))
		for _, l := range locks {
			if l.PID < 0 || l.Device == "" {
				t.Errorf("%+v", l)
			}
		}
	})
}
