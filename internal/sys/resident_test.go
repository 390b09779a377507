package sys

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnwritableMappingsAreThoseOfTheProgram(t *testing.T) {
	const maps = `00400000-01d39000 r-xp 00000000 fe:00 10457411                           /usr/bin/den
01d39000-03b62000 r--p 01939000 fe:00 10457411                           /usr/bin/den
03b62000-03c49000 rw-p 03762000 fe:00 10457411                           /usr/bin/den
03c49000-05f51000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 10457411                   /usr/bin/den
7f0a47c30000-7f0a47f00000 r--p 00000000 fe:00 3                          /usr/bin/other
7f0a48000000-7f0a48001000 r--p 00000000 fe:00 3                          /tmp/x /usr/bin/den (deleted)
7ffd0c5e8000-7ffd0c5ea000 r-xp 00000000 00:00 0                          [vdso]
`
	got, err := unwritable(strings.NewReader(maps), "/usr/bin/den")
	want := []addresses{{0x400000, 0x1d39000}, {0x1d39000, 0x3b62000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(addresses{})); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

// mappedKiB is what of files is resident in this process.
func mappedKiB(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Skip("this kernel does not say what of files is resident (before 4.5)")
	return 0
}

func TestDroppedProgramGoesOnWithLessMemory(t *testing.T) {
	before := mappedKiB(t)
	if err := dropProgram(); err != nil {
		t.Fatal(err)
	}
	if after := mappedKiB(t); after >= before*3/4 {
		t.Errorf("%d KiB of files are resident, %d before", after, before)
	}
}
