package sys

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// Umask returns the process's file mode creation mask without changing it, as
// umask(2) would for a moment, for every goroutine. If the kernel does not
// tell, it says that every bit is masked.
func Umask() uint32 {
	const unknown = 0o777
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return unknown
	}
	_, rest, ok := bytes.Cut(status, []byte("\nUmask:"))
	if !ok {
		return unknown
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, err := strconv.ParseUint(strings.TrimSpace(string(line)), 8, 32)
	if err != nil {
		return unknown
	}
	return uint32(mask)
}
