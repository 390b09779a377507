package main

import (
	"os"
	"sync/atomic"
)

// A stdout remembers that a write to it failed: a list that ends with the disk
// is not a success, and most of those who print do not look.
type stdout struct {
	*os.File
	failure atomic.Pointer[error]
}

// Write is the file's.
func (s *stdout) Write(b []byte) (int, error) {
	n, err := s.File.Write(b)
	if err != nil {
		s.failure.CompareAndSwap(nil, &err)
	}
	return n, err
}

// failed returns the first write's error.
func (s *stdout) failed() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}
