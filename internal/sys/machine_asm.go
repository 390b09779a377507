//go:build amd64 || arm64

package sys

import "unsafe"

// walk is the machine code of a plan's process; it is copied, never called.
//
//lint:ignore U1000 the assembly of walkAddress refers to it
func walk()

// walkAddress is where walk begins. A Go function value would lead to a wrapper.
func walkAddress() unsafe.Pointer

// machineCode returns the walker, with some bytes of whatever follows it.
//
// Not inlined: Go 1.26.8's compiler fails on the copy of known length that
// comes out of it.
//
//go:noinline
func machineCode() []byte {
	return unsafe.Slice((*byte)(walkAddress()), machineBytes)
}
