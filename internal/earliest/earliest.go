// Package earliest looks, before anything else of den runs, for the file without which nothing else runs.
//
// gVisor reads /proc/sys/vm/mmap_min_addr when its package is initialised, and panics where it cannot: every
// command would end with a trace of goroutines. Packages are initialised in the order of their import paths as far as
// their imports allow (The Go Programming Language Specification, "Program initialization"), and this
// one imports nothing that gVisor's does not import, too: its turn comes first. It can go when gVisor returns an error.
package earliest

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

const source = "/proc/sys/vm/mmap_min_addr"

// The effect of importing this package.
var _ = look()

func look() bool {
	text, err := read(source)
	if err == nil {
		err = check(text)
	}
	if err == nil {
		return true
	}
	_, _ = syscall.Write(2, []byte("den: "+sentence(err)+"\n"))
	syscall.Exit(1)
	return false
}

// check says whether the file has what gVisor takes.
func check(text string) error {
	if _, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64); err != nil {
		return errors.New("it has no number in it: something covers it")
	}
	return nil
}

// sentence says what is wrong and what helps.
func sentence(err error) string {
	why := "read " + source + ": " + err.Error()
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return why + ": no command of den runs without /proc: have it mounted in the container around den, as container runtimes do"
	}
	return why + ": no command of den runs without it: let the container around den read its /proc/sys (a security module, or what is mounted there, hides it)"
}

// read is the beginning of a file, which is more than its number needs.
func read(name string) (string, error) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer syscall.Close(fd)
	b := make([]byte, 64)
	n, err := syscall.Read(fd, b)
	return string(b[:max(0, n)]), err
}
