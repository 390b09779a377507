package earliest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWhatIsWrongIsASentence(t *testing.T) {
	for err, want := range map[error]string{
		syscall.ENOENT: "no such file or directory: no command of den runs without /proc",
		syscall.EACCES: "permission denied: no command of den runs without it",
		check(""):      "something covers it",
		check("0x10"):  "something covers it",
	} {
		if got := sentence(err); !strings.HasPrefix(got, "read /proc/sys/vm/mmap_min_addr: ") || !strings.Contains(got, want) {
			t.Errorf("%v: %q", err, got)
		}
	}
	for _, text := range []string{"0\n", "4096\n", "65536"} {
		if err := check(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFilesAreReadWithoutPackageOS(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := read(name); got != "77\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(name + "x"); err != syscall.ENOENT {
		t.Error(err)
	}
}
