//go:build !cgo

package gofer

const cgo = false
