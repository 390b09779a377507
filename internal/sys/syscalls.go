package sys

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

//go:generate go run syscalls_gen.go

// call is a system call's name and its number on each Arch; -1 for none.
type call struct {
	name string
	nr   [4]int32
}

// An Arch is a system call table.
type Arch int

// Tables that den knows: those of the processors that it runs on, and of the
// 32-bit programs that run there too.
const (
	AMD64 Arch = iota
	I386
	ARM64
	ARM
)

// NativeArch is the table of this program; ok is false where den has none.
func NativeArch() (a Arch, ok bool) {
	i := slices.Index([]string{"amd64", "386", "arm64", "arm"}, runtime.GOARCH)
	return Arch(max(i, 0)), i >= 0
}

// CallNumber is the number of the system call of that name on a.
func CallNumber(a Arch, name string) (nr uint32, ok bool) {
	i, found := slices.BinarySearchFunc(calls[:], name, func(c call, name string) int { return strings.Compare(c.name, name) })
	if !found || calls[i].nr[a] < 0 {
		return 0, false
	}
	return uint32(calls[i].nr[a]), true
}

// LastCall is the highest number on a, but for ARM's private ones: a higher number is a call that
// is newer than this table.
func LastCall(a Arch) uint32 {
	var last uint32
	for _, c := range calls {
		if n := c.nr[a]; n >= 0 && n < 0xf0000 {
			last = max(last, uint32(n))
		}
	}
	return last
}

// CallName is the name of this program's system call number nr.
func CallName(nr uintptr) string {
	if a, ok := NativeArch(); ok {
		for _, c := range calls {
			if c.nr[a] == int32(nr) {
				return c.name
			}
		}
	}
	return fmt.Sprintf("system call %d", nr)
}
