//go:build cgo

package gofer

// cgo says that a C library makes this process's threads, by system calls of
// its own. den is built without; its tests may be built with.
const cgo = true
