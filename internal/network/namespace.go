package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// In runs f on a thread in the network namespace ns, or in the present one if ns is
// nil. Sockets that f makes stay in it; goroutines that f starts are not in it. The thread ends with f: one that
// went back to Go's pool would take other goroutines along.
func In(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// A goroutine that ends while it is locked takes its thread along.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// But for the first thread, which /proc/PID shows, and which cannot end: keep it
		// here while another goroutine finds another thread.
		done <- onThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// NewNamespace makes a network namespace with a loopback device that is up. It
// lives as long as a descriptor of it, or a process in it.
func NewNamespace() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		var err error
		if ns, err = os.Open("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("loopback device: %w", err)
		}
		// As dockerd does: whoever a container's user is, port 80 is its own here, and
		// ping needs no capability. Where /proc/sys is read-only it stays as the kernel has it.
		_ = os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
		_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, closeFile(ns))
	}
	return ns, nil
}
