//go:build cgo

package gofer

// cgo says that a C library makes this process's threads. den is built without; its tests may be built with.
const cgo = true
