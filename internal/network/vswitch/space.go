package vswitch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/oci"
)

// A space is where a sandbox's devices wait for it, and how to put more into it
// once it runs. The driver knows it by the container's id until the container has ended.
type space struct {
	mu      sync.Mutex
	waiting []oci.Interface // not yet a sandbox's
	plug    func(context.Context, oci.Interface) error
	unplug  func(context.Context, string) error
}

// NewSpace is Driver's.
func (d *Driver) NewSpace(_ context.Context, container string) (network.Space, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &space{}
	d.spaces[container] = s
	return s, nil
}

// OpenSpace is Driver's.
func (d *Driver) OpenSpace(_ context.Context, container string, _ int) (network.Space, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.spaces[container]
	if s == nil {
		return nil, fmt.Errorf("container %s: no sandbox of this process: %w", container, errdefs.ErrFailedPrecondition)
	}
	return s, nil
}

// Namespace is Space's: the sandbox has its own stack.
func (s *space) Namespace() *os.File { return nil }

// Interfaces is Space's.
func (s *space) Interfaces() []oci.Interface {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.waiting)
}

// SetPlug is Space's. The devices that waited are the sandbox's from now on.
func (s *space) SetPlug(plug func(context.Context, oci.Interface) error, unplug func(context.Context, string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plug, s.unplug = plug, unplug
	// The sandbox has its own; with these open, its end would not be seen.
	s.closeWaiting()
}

// Close is Space's: it closes the sandbox's ends of cables in this process.
func (s *space) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeWaiting()
	return nil
}

func (s *space) closeWaiting() {
	for _, i := range s.waiting {
		_ = i.Cable.Close() // nobody has written to it
	}
	s.waiting = nil
}

// add puts a device into the sandbox, or keeps it until the sandbox starts. One of the same name is replaced.
func (s *space) add(ctx context.Context, i oci.Interface) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plug == nil {
		s.drop(i.Name)
		s.waiting = append(s.waiting, i)
		return nil
	}
	defer func() { _ = i.Cable.Close() }() // the sandbox has its own
	if err := s.unplug(ctx, i.Name); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return s.plug(ctx, i)
}

// remove takes a device out.
func (s *space) remove(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(name)
	if s.unplug == nil {
		return nil
	}
	if err := s.unplug(ctx, name); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func (s *space) drop(name string) {
	s.waiting = slices.DeleteFunc(s.waiting, func(i oci.Interface) bool {
		if i.Name == name {
			_ = i.Cable.Close()
		}
		return i.Name == name
	})
}
