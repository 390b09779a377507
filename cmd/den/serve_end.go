package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// exitWith watches what --exit-with names: the channel closes when that is gone. The function
// ends the watching.
func exitWith(what string) (<-chan struct{}, func(), error) {
	if what == "" {
		return nil, func() {}, nil
	}
	fd, events, err := openWatched(what)
	if err != nil {
		return nil, nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("--exit-with %s: %w", what, err)
	}
	gone, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		polls := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(wake), Events: unix.POLLIN}}
		buf := make([]byte, 512)
		for {
			if _, err := unix.Poll(polls, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if polls[1].Revents != 0 {
				return
			}
			if polls[0].Revents == 0 {
				continue
			}
			if events == watchEnd && polls[0].Revents&unix.POLLIN != 0 {
				if n, err := unix.Read(fd, buf); n > 0 || errors.Is(err, unix.EAGAIN) {
					continue // somebody is there, and talks
				}
			}
			close(gone)
			return
		}
	}()
	return gone, func() {
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // an eventfd that is empty takes it
		<-ended
		unix.Close(wake)
		unix.Close(fd)
	}, nil
}

// watchEnd waits for the end of what can be read.
const watchEnd = unix.POLLIN | unix.POLLHUP

// openWatched is the descriptor that tells that a process, or the other end of a
// descriptor, is gone, and the events to wait for.
func openWatched(what string) (fd int, events int16, err error) {
	if n, ok := strings.CutPrefix(what, "fd:"); ok {
		fd, err := strconv.Atoi(n)
		if err != nil || fd < 0 {
			return -1, 0, &usageError{fmt.Sprintf("--exit-with %q: want fd:N with the number of an open descriptor", what)}
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return -1, 0, fmt.Errorf("--exit-with %s: %w; it has to be inherited by den", what, err)
		}
		return fd, watchEnd, nil
	}
	pid, err := strconv.Atoi(what)
	if err != nil || pid <= 0 {
		return -1, 0, &usageError{fmt.Sprintf("--exit-with %q: want a process's id, or fd:N", what)}
	}
	if pid == os.Getpid() {
		return -1, 0, &usageError{"--exit-with " + what + ": that is den itself"}
	}
	fd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("--exit-with %s: %w; the process has to live, in den's pid namespace", what, err)
	}
	return fd, unix.POLLIN, nil
}
